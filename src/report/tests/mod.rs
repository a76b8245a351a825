//! Tests of whole pages.

mod browser;
mod budget;
mod compare;
mod hostile;
mod made;
mod page;
mod parsed;
mod runs;
