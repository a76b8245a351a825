//! Maintenance of a cache: what it holds and for whom, garbage collection, verification, and remotes.

mod disk;
mod gc;
mod inventory;
mod orphans;
mod pins;
mod policy;
mod pull;
mod push;
mod retention;
mod verify;

pub use disk::{Disk, Space};
pub use gc::{GcSummary, Plan};
pub use inventory::{Inventory, Item, Owner, RunUse};
pub use pins::{Pin, Pins};
pub use policy::{Policy, Removal, Target};
pub use pull::{Pull, Pulled};
pub use push::{Push, Pushed};
pub use retention::{RetainReason, Retained};
pub use verify::{Corruption, Verify, VerifySummary};
