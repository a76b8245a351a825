//! What can be wrong with a pickle.

/// Why a pickle could not be read. The caller knows the file.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// It names something that could do harm, or that we would have to understand.
    #[error(
        "refused: the pickle names {global:?} at byte {at}, expected only tensors in dicts (nothing of it was run)"
    )]
    Global {
        /// Module and name.
        global: String,
        /// Where the opcode stands.
        at: usize,
    },
    /// It ends within an opcode.
    #[error("truncated pickle: {left} bytes left at byte {at}, expected {wanted}")]
    Truncated {
        /// Where reading went on.
        at: usize,
        /// Bytes wanted.
        wanted: usize,
        /// Bytes there.
        left: usize,
    },
    /// An opcode that `torch.save` has no use for.
    #[error("opcode {opcode:#04x} at byte {at} of the pickle, expected one that torch.save writes")]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// Where it stands.
        at: usize,
    },
    /// An opcode meets a value that it can't work on.
    #[error("malformed pickle at byte {at}: {found}, expected {expected}")]
    Malformed {
        /// Where the opcode stands.
        at: usize,
        /// What it met.
        found: String,
        /// What it works on.
        expected: &'static str,
    },
    /// More than any file of tensors needs.
    #[error("a pickle with more than {limit} {what} is refused")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: usize,
    },
}
