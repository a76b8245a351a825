//! Care for a cache: what it holds and for whom, what can go, whether it is sound, and sharing it with others.

mod disk;
mod gc;
mod inventory;
mod orphans;
mod pins;
mod policy;
pub mod remote;
mod retention;
mod verify;

pub use disk::{Disk, Space};
pub use gc::{Done, Plan};
pub use inventory::{Inventory, Item, Name, Past};
pub use pins::{Pin, Pins};
pub use policy::{Policy, Step, What};
pub use retention::{Kept, Why};
pub use verify::{Checked, Damage, Verify};
