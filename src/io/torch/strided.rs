//! Views of a storage, and their elements in C order.

use std::borrow::Cow;

/// Shape, stride and first element, counted in elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout<'a> {
    pub shape: &'a [usize],
    pub stride: &'a [usize],
    pub offset: usize,
}

impl Layout<'_> {
    /// The number of elements, `None` on overflow.
    pub fn len(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
    }

    /// The number of elements that the storage must have, `None` on overflow.
    pub fn end(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let steps = self.shape.iter().zip(self.stride);
        let last = steps.map(|(size, stride)| (size - 1).checked_mul(*stride));
        last.chain([Some(1)]).try_fold(self.offset, |sum, steps| sum.checked_add(steps?))
    }

    /// Whether the elements are contiguous in C order. The stride of an axis of length 1 is irrelevant.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(self.stride).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        })
    }

    /// The elements, of `size` bytes each. Both [`len`](Self::len) and [`end`](Self::end) were checked.
    pub fn gather<'b>(&self, storage: &'b [u8], size: usize) -> Cow<'b, [u8]> {
        let len = self.shape.iter().product::<usize>();
        if len == 0 {
            return Cow::Borrowed(&[]);
        }
        if self.is_contiguous() {
            return Cow::Borrowed(&storage[self.offset * size..(self.offset + len) * size]);
        }
        let mut out = Vec::with_capacity(len * size);
        let mut index = vec![0; self.shape.len()];
        let mut element = self.offset;
        for _ in 0..len {
            out.extend_from_slice(&storage[element * size..(element + 1) * size]);
            // Counts the index up like an odometer, the last axis fastest.
            for axis in (0..index.len()).rev().filter(|&axis| self.shape[axis] > 1) {
                index[axis] += 1;
                element += self.stride[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                element -= self.stride[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        Cow::Owned(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By definition: element i, j, k is at offset + i s0 + j s1 + k s2.
    #[test]
    fn any_stride_agrees_with_the_definition() {
        let storage: Vec<u8> = (0..=255).collect();
        for shape in [[2, 3, 4], [1, 5, 1], [4, 1, 2], [3, 0, 2]] {
            for stride in [[12, 4, 1], [1, 2, 6], [0, 7, 3], [20, 1, 0], [9, 9, 9]] {
                let layout = Layout { shape: &shape, stride: &stride, offset: 5 };
                let mut expected = Vec::new();
                for i in 0..shape[0] {
                    for j in 0..shape[1] {
                        for k in 0..shape[2] {
                            let at = 2 * (5 + i * stride[0] + j * stride[1] + k * stride[2]);
                            expected.extend([at as u8, at as u8 + 1]);
                            assert!(at / 2 < layout.end().unwrap());
                        }
                    }
                }
                assert_eq!(layout.gather(&storage, 2), expected, "{shape:?} {stride:?}");
            }
        }
    }

    #[test]
    fn an_axis_of_length_one_is_never_walked() {
        let layout = Layout { shape: &[1, 2], stride: &[usize::MAX, 2], offset: 1 };
        assert_eq!((layout.len(), layout.end()), (Some(2), Some(4)));
        assert_eq!(&*layout.gather(b"abcd", 1), b"bd");
    }

    #[test]
    fn overflow_is_detected() {
        let layout = |shape, stride| Layout { shape, stride, offset: 0 };
        assert_eq!(layout(&[usize::MAX, 2], &[0, 1]).len(), None);
        assert_eq!(layout(&[3, 2], &[usize::MAX, 1]).end(), None);
        assert_eq!(layout(&[2, 2], &[usize::MAX, 1]).end(), None);
        assert_eq!(layout(&[2, 2], &[usize::MAX - 1, 1]).end(), None);
        assert_eq!(layout(&[0, usize::MAX], &[1, 1]).end(), Some(0));
    }
}
