//! Pickles as Python writes them, and invalid ones.

use proptest::prelude::*;

use super::*;

fn root(bytes: &[u8]) -> Pickle<'_> {
    let (pickle, end) = Pickle::read(bytes).unwrap();
    assert_eq!(end, bytes.len());
    pickle
}

fn error(bytes: &[u8]) -> String {
    Pickle::read(bytes).unwrap_err().to_string()
}

#[test]
fn plain_values() {
    for (bytes, expected) in [
        (&b"\x80\x02N."[..], Value::None),
        (b"\x80\x02\x88.", Value::Bool(true)),
        (b"\x80\x02\x89.", Value::Bool(false)),
        (b"\x80\x02K\xff.", Value::Int(255)),
        (b"\x80\x02M\xff\xff.", Value::Int(65535)),
        (b"\x80\x02J\xfe\xff\xff\xff.", Value::Int(-2)),
        (b"\x80\x02\x8a\x00.", Value::Int(0)),
        (b"\x80\x02\x8a\x02\x00\xff.", Value::Int(-256)),
        (b"\x80\x02\x8a\x06\x00\x00\x00\x00\x00\x01.", Value::Int(1 << 40)),
        (b"\x80\x02\x8b\x01\x00\x00\x00\x80.", Value::Int(-128)),
        (b"\x80\x02G\xbf\xf8\0\0\0\0\0\0.", Value::Float(-1.5)),
        (b"\x80\x02X\x02\0\0\0\xc3\xbc.", Value::Str("ü")),
        (b"\x80\x04\x95\x06\0\0\0\0\0\0\0\x8c\x02\xc3\xbc\x94.", Value::Str("ü")),
        (b"\x80\x04\x8d\x01\0\0\0\0\0\0\0x.", Value::Str("x")),
        (b"\x80\x03C\x01\xff.", Value::Bytes(b"\xff")),
        (b"\x80\x03B\x01\0\0\0\xff.", Value::Bytes(b"\xff")),
        (b"\x80\x05\x96\x01\0\0\0\0\0\0\0\xff.", Value::Bytes(b"\xff")),
        (b"\x80\x02K\x01K\x020.", Value::Int(1)),
        (b"\x80\x02K\x01(K\x02K\x031.", Value::Int(1)),
    ] {
        assert_eq!(root(bytes).root(), expected, "{bytes:?}");
    }
}

#[test]
fn containers_hold_values_and_each_other() {
    // (1, [2, 3, 4], {"a": 5, "b": 6}), with the tuple of it twice in a pair
    let pickle =
        root(b"\x80\x02K\x01]q\0(K\x02K\x03eK\x04a}(X\x01\0\0\0aK\x05uX\x01\0\0\0bK\x06s\x87q\x012\x86.");
    let pair = pickle.tuple(pickle.root()).unwrap();
    assert_eq!(pair[0], pair[1]);
    let items = pickle.tuple(pair[0]).unwrap();
    assert_eq!(items[0], Value::Int(1));
    let list = Object::List(vec![Value::Int(2), Value::Int(3), Value::Int(4)]);
    assert_eq!(pickle.get(items[1]), Some(&list));
    let dict = [(Value::Str("a"), Value::Int(5)), (Value::Str("b"), Value::Int(6))];
    assert_eq!(pickle.dict(items[2]).unwrap(), dict);
}

#[test]
fn a_list_may_hold_itself() {
    let pickle = root(b"\x80\x02]q\0h\0a.");
    assert_eq!(pickle.get(pickle.root()), Some(&Object::List(vec![pickle.root()])));
}

#[test]
fn nesting_without_end_is_no_danger() {
    let mut bytes = b"\x80\x02)".to_vec();
    bytes.extend([0x85].repeat(1 << 20));
    bytes.push(b'.');
    drop(root(&bytes).clone());
    let opened = [&b"\x80\x02"[..], &b"(".repeat(1000)].concat();
    assert_eq!(error(&opened), "a pickle with more than 256 nested containers is refused");
}

#[test]
fn more_opcodes_than_any_file_of_tensors_has_are_refused() {
    let bytes = [&b"\x80\x02"[..], &b"N0".repeat(1 << 22), b"N."].concat();
    assert_eq!(error(&bytes), "a pickle with more than 8388608 opcodes is refused");
}

#[test]
fn nothing_but_tensors_may_be_named() {
    let refused = |name| {
        format!(
            "refused: the pickle names {name:?} at byte 2, expected only tensors in dicts (no code was run)"
        )
    };
    assert_eq!(error(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R."), refused("os.system"));
    assert_eq!(error(b"\x80\x02cbuiltins\neval\n."), refused("builtins.eval"));
    assert_eq!(error(b"\x80\x02ctorch\nload\n."), refused("torch.load"));
    assert_eq!(error(b"\x80\x02ctorch\nhub.Storage\n."), refused("torch.hub.Storage"));
    assert_eq!(error(b"\x80\x02ctorch\nStorage\n."), refused("torch.Storage"));
    assert_eq!(
        error(b"\x80\x02ctorch._utils\n_rebuild_qtensor\n."),
        refused("torch._utils._rebuild_qtensor")
    );
    let by_stack = error(b"\x80\x04\x8c\x02os\x8c\x06system\x93.");
    assert!(by_stack.contains("\"os.system\" at byte 14"), "{by_stack}");
    let long = [&b"\x80\x02c"[..], &b"x".repeat(1 << 16), b"\ny\n."].concat();
    assert!(error(&long).len() < 250);
}

#[test]
fn classes_sets_and_the_rest_are_no_opcodes_of_ours() {
    for opcode in *b"iob\x81\x92\x8f\x90\x91\x97\x98\x82\x83\x84PILFSUTVgp" {
        let bytes = [b'\x80', 2, b'N', b'(', opcode, 0, 0, 0, 0, 0, 0, 0, 0, b'.'];
        assert!(Pickle::read(&bytes).is_err(), "{opcode:#x}");
    }
    assert_eq!(
        error(b"\x80\x02N)\x81."),
        "opcode 0x81 at byte 4 of the pickle, expected one that torch.save writes"
    );
}

#[test]
fn calls_are_noted_not_made() {
    let pickle = root(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x01\x85R.");
    let Some(Object::Call { function: Global::RebuildTensor, arguments }) = pickle.get(pickle.root()) else {
        panic!("{pickle:?}")
    };
    assert_eq!(pickle.tuple(*arguments).unwrap(), [Value::Int(1)]);
    let size = root(b"\x80\x02ctorch\nSize\nK\x02K\x03\x86\x85R.");
    assert_eq!(size.tuple(size.root()).unwrap(), [Value::Int(2), Value::Int(3)]);
    for bytes in [
        &b"\x80\x02ctorch\nFloatStorage\n)R."[..],
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
        b"\x80\x02K\x01)R.",
        b"\x80\x02ccollections\nOrderedDict\nNR.",
    ] {
        assert!(error(bytes).starts_with("malformed pickle at byte"), "{}", error(bytes));
    }
}

#[test]
fn attributes_are_dropped_from_an_ordered_dict_and_refused_elsewhere() {
    let pickle = root(b"\x80\x02ccollections\nOrderedDict\n)R}b.");
    assert_eq!(pickle.dict(pickle.root()).unwrap(), []);
    assert!(error(b"\x80\x02}}b.").contains("attributes for an object"));
    assert!(error(b"\x80\x02ccollections\nOrderedDict\n)RNb.").contains("attributes for an object"));
}

#[test]
fn what_is_cut_off_or_upside_down_is_told() {
    for (bytes, expected) in [
        (&b""[..], "truncated pickle: 0 bytes left at byte 0, expected 2"),
        (b"\x80\x02", "truncated pickle: 0 bytes left at byte 2, expected 1"),
        (b"\x80\x02X\xff\xff\xff\xffabc", "truncated pickle: 3 bytes left at byte 7, expected 4294967295"),
        (b"\x80\x01N.", "malformed pickle at byte 0: protocol 1, expected 2 to 5"),
        (b"N.", "malformed pickle at byte 0: no protocol, expected a pickle of protocol 2 to 5"),
        (
            b"\x80\x02.",
            "malformed pickle at byte 2: too few values on the stack, expected one for each operand",
        ),
        (
            b"\x80\x02N(\x85.",
            "malformed pickle at byte 4: too few values on the stack, expected one for each operand",
        ),
        (b"\x80\x02u.", "malformed pickle at byte 2: no mark, expected one to close"),
        (b"\x80\x02h\x07.", "malformed pickle at byte 2: memo 7, expected one that was set"),
        (
            b"\x80\x02}(Nu.",
            "malformed pickle at byte 5: keys and values for a non-dict, expected a dict and pairs",
        ),
        (b"\x80\x02)Na.", "malformed pickle at byte 4: items for a non-list, expected a list"),
        (b"\x80\x02X\x01\0\0\0\xff.", "malformed pickle at byte 2: a str that is not text, expected UTF-8"),
        (b"\x80\x02cos", "malformed pickle at byte 2: a name without end, expected a line"),
        (
            b"\x80\x02\x8a\x11000000000000000000.",
            "malformed pickle at byte 2: an int of 17 bytes, expected 16 at most",
        ),
    ] {
        assert_eq!(error(bytes), expected);
    }
}

/// Opcodes with short operands, so that pickles get beyond the first step.
fn soup() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: &[&[u8]] = &[
        b"N",
        b"\x88",
        b"K\x01",
        b"K\x02",
        b"M\x01\0",
        b"J\0\0\0\x80",
        b"\x8a\x01\xff",
        b"\x8b\x01\0\0\0\x7f",
        b"(",
        b")",
        b"\x85",
        b"\x86",
        b"\x87",
        b"t",
        b"]",
        b"l",
        b"a",
        b"e",
        b"}",
        b"d",
        b"s",
        b"u",
        b"0",
        b"1",
        b"2",
        b"q\0",
        b"q\x01",
        b"h\0",
        b"h\x01",
        b"\x94",
        b"j\0\0\0\0",
        b"r\x01\0\0\0",
        b"R",
        b"b",
        b"Q",
        b"C\x01x",
        b"\x8c\x01x",
        b"X\x01\0\0\0x",
        b"\x8c\x02os",
        b"\x93",
        b"ctorch\nSize\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"G\0\0\0\0\0\0\0\0",
        b"\x95\0\0\0\0\0\0\0\0",
    ];
    let pieces = proptest::collection::vec(proptest::sample::select(PIECES), 0..40);
    pieces.prop_map(|pieces| [&b"\x80\x04"[..], &pieces.concat(), b"."].concat())
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Pickle::read(&bytes);
        let _ = Pickle::read(&[b"\x80\x02", &bytes[..]].concat());
    }

    #[test]
    fn no_order_of_opcodes_makes_it_panic(bytes in soup()) {
        if let Ok((pickle, end)) = Pickle::read(&bytes) {
            prop_assert!(end <= bytes.len());
            let _ = pickle.describe(pickle.root());
        }
    }
}
