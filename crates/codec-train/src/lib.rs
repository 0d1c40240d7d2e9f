//! Training of neural audio codecs, from a folder of recordings to a model that `codec` loads.
//!
//! A run is described by one [`config::RunConfig`]; [`Trainer`] does its steps. Everything random follows
//! from the seed and the number of the step, so a run that is killed and resumed equals one that was not,
//! bit for bit on the CPU. `docs/training.md` shows the way.

pub mod adversary;
pub mod balancer;
pub mod checkpoint;
pub mod config;
pub mod data;
mod error;
pub mod folder;
pub mod losses;
pub mod model;
pub mod optim;
pub mod quantizer;
pub mod report;
pub mod rng;
pub mod run;
mod trainer;
pub mod validation;

pub use error::{Error, Result};
pub use trainer::{StepReport, Trainer};
