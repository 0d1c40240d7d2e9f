//! Batches ahead of the trainer.

use super::library::{Crop, Library};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Batches per thread that wait for the trainer.
const AHEAD: usize = 4;

/// Crops of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The crops.
    pub crops: Vec<Crop>,
}

/// Threads that make batches; they come in the order of the steps, whichever thread was faster.
#[derive(Debug)]
pub struct Loader {
    ready: Receiver<(u64, Result<Batch>)>,
    early: BTreeMap<u64, Result<Batch>>,
    next: u64,
    _threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts `n_threads` threads at batch `first`.
    pub fn new(library: &Arc<Library>, batch_size: usize, first: u64, n_threads: usize) -> Self {
        let n_threads = n_threads.max(1);
        let (send, ready) = sync_channel(AHEAD * n_threads);
        let next = Arc::new(AtomicU64::new(first));
        let start = |_| {
            let (library, next, send) = (Arc::clone(library), Arc::clone(&next), send.clone());
            std::thread::spawn(move || work(&library, batch_size as u64, &next, &send))
        };
        let threads = (0..n_threads).map(start).collect();
        Self { ready, early: BTreeMap::new(), next: first, _threads: threads }
    }

    /// The next batch, and whether it was there already.
    ///
    /// # Errors
    /// As [`Library::crop`]; [`Error::Loader`] when the threads are gone.
    pub fn take(&mut self) -> Result<(Batch, bool)> {
        let mut waited = false;
        loop {
            if let Some(batch) = self.early.remove(&self.next) {
                self.next += 1;
                return batch.map(|batch| (batch, !waited));
            }
            let (batch_idx, batch) = match self.ready.try_recv() {
                Ok(batch) => batch,
                Err(_) => {
                    waited = true;
                    self.ready.recv().map_err(|_| Error::Loader)?
                }
            };
            self.early.insert(batch_idx, batch);
        }
    }
}

fn work(library: &Library, batch_size: u64, next: &AtomicU64, send: &SyncSender<(u64, Result<Batch>)>) {
    loop {
        let batch_idx = next.fetch_add(1, Ordering::Relaxed);
        let batch = batch(library, batch_idx, batch_size);
        // The trainer is gone, or will be once it sees the error.
        if send.send((batch_idx, batch)).is_err() {
            return;
        }
    }
}

/// Batch number `batch_idx` of a run.
pub(crate) fn batch(library: &Library, batch_idx: u64, batch_size: u64) -> Result<Batch> {
    let first = batch_idx * batch_size;
    let crops = (first..first + batch_size).map(|crop_idx| library.crop(crop_idx));
    Ok(Batch { crops: crops.collect::<Result<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::super::library::tests::{data_config, write_tone};
    use super::*;
    use codec_core::AudioSpec;

    #[test]
    fn batches_come_in_order_for_any_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        (0..5).for_each(|i| {
            write_tone(folder.path(), &format!("{i}.wav"), 200.0 + 50.0 * i as f32, 0.5, false);
        });
        let spec = AudioSpec { sample_rate: 16_000, channels: 1 };
        let library = Arc::new(Library::new(&data_config(folder.path()), spec, 500, 3).unwrap());
        let take = |first, n_threads| -> Vec<Batch> {
            let mut loader = Loader::new(&library, 3, first, n_threads);
            (0..20).map(|_| loader.take().unwrap().0).collect()
        };
        let want = take(0, 1);
        assert_eq!(take(0, 4), want);
        // A resumed run goes on where the other stopped.
        assert_eq!(take(7, 2)[..13], want[7..]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.wav"), b"no audio").unwrap();
        let spec = AudioSpec { sample_rate: 16_000, channels: 1 };
        let library = Arc::new(Library::new(&data_config(folder.path()), spec, 500, 3).unwrap());
        let error = Loader::new(&library, 1, 0, 2).take().unwrap_err();
        assert!(error.to_string().contains("a.wav"), "{error}");
    }
}
