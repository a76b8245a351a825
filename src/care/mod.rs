//! Care for a cache: what it holds and for whom, what can go, whether it is sound, and sharing it with others.

mod disk;
mod gc;
mod inventory;
mod keep;
mod pins;
pub mod remote;
mod rubbish;
mod verify;

pub use disk::{Disk, Space};
pub use gc::{Done, Plan, Policy, Step, What};
pub use inventory::{Inventory, Item, Name, Past};
pub use keep::{Kept, Why};
pub use pins::{Pin, Pins};
pub use verify::{Checked, Damage, Verify};
