//! AdamW, its learning rate, clipping, and averages of weights.

mod adamw;
mod schedule;

pub(crate) use adamw::with_rows_of;
pub use adamw::{AdamW, Average, global_norm};
pub use schedule::learning_rate;
