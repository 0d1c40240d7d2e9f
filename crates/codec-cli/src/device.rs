//! `--device`.

use anyhow::{Context, Result};
use candle_core::Device;

/// Where the networks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DeviceKind {
    /// The reference: the same bits on every machine.
    Cpu,
    /// The first CUDA device; needs a build with the feature `cuda`.
    Cuda,
    /// The first Metal device; needs a build with the feature `metal`.
    Metal,
}

impl DeviceKind {
    pub(crate) fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => Device::new_cuda(0)
                .context("no CUDA device to be had; build with `--features cuda` on a machine that has one"),
            Self::Metal => Device::new_metal(0)
                .context("no Metal device to be had; build with `--features metal` on a Mac"),
        }
    }
}
