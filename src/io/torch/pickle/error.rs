//! Errors of reading a pickle.

/// Why a pickle could not be read. The caller adds the file's name.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// It imports a name that is not in the list of allowed ones.
    #[error(
        "refused: the pickle names {global:?} at byte {at}, expected only tensors in dicts (no code was run)"
    )]
    Global {
        /// Module and name.
        global: String,
        /// The position of the opcode.
        at: usize,
    },
    /// It ends within an opcode.
    #[error("truncated pickle: {left} bytes left at byte {at}, expected {wanted}")]
    Truncated {
        /// The position of the read.
        at: usize,
        /// Bytes expected.
        wanted: usize,
        /// Bytes left.
        left: usize,
    },
    /// An opcode that `torch.save` does not write.
    #[error("opcode {opcode:#04x} at byte {at} of the pickle, expected one that torch.save writes")]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// Its position.
        at: usize,
    },
    /// An invalid operand of an opcode.
    #[error("malformed pickle at byte {at}: {found}, expected {expected}")]
    Malformed {
        /// The position of the opcode.
        at: usize,
        /// What was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A limit is exceeded.
    #[error("a pickle with more than {limit} {what} is refused")]
    TooLarge {
        /// The counted things.
        what: &'static str,
        /// The most allowed.
        limit: usize,
    },
}
