//! What generation and evaluation need of a model, whichever family it is of.

use crate::config::CodecIdentity;
use crate::depth::DepthState;
use crate::error::{Error, Result};
use crate::model::{Model, State, Steps};
use crate::ops::log_probability;
use crate::pattern::{Arrangement, Tokens};
use crate::vocabulary::Special;
use candle_core::Tensor;
use rayon::prelude::*;
use std::fmt::Debug;
use std::ops::Range;

/// Steps that are judged at once.
const CHUNK: usize = 256;

/// A model that predicts the next step of a sequence.
pub trait LanguageModel: Debug + Send + Sync {
    /// How codes stand in its sequences.
    fn arrangement(&self) -> &Arrangement;

    /// The codec whose codes these are, if the model knows.
    fn codec(&self) -> Option<&CodecIdentity>;

    /// Names of the classes that a sequence can be asked to belong to.
    fn classes(&self) -> &[String];

    /// Parameters.
    fn n_parameters(&self) -> usize;

    /// Begins a sequence of a class, `None` for that of none.
    ///
    /// # Errors
    /// What the layers fail with.
    fn begin(&self, class: Option<u32>) -> Result<Box<dyn Reader + '_>>;

    /// What every cell of a sequence costs, `-ln p` in nats; 0 where nothing is predicted.
    ///
    /// # Shapes
    /// `[n_steps, n_streams]`, as the tokens.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Token`] for tokens of another pattern.
    fn costs(&self, tokens: &Tokens, class: Option<u32>) -> Result<Vec<f64>> {
        let mut reader = self.begin(class)?;
        let n_streams = self.arrangement().n_streams();
        if tokens.n_streams() != n_streams {
            let (expected, actual) = (n_streams, tokens.n_streams());
            return Err(Error::Shape { what: "streams of a sequence", expected, actual });
        }
        let mut costs = Vec::with_capacity(tokens.values().len());
        for steps in tokens.values().chunks(CHUNK * n_streams) {
            costs.append(&mut reader.costs(steps)?);
        }
        Ok(costs)
    }
}

/// A sequence that is being read.
pub trait Reader: Debug + Send {
    /// Reads the next steps, `[n_steps, n_streams]`.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Token`] for steps of another pattern.
    fn read(&mut self, steps: &[u32]) -> Result<()>;

    /// The logits of stream `known.len()` of the next step, whose streams before it hold `known`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a stream that there is not.
    fn logits(&mut self, known: &[u32]) -> Result<Vec<f32>>;

    /// Reads the next steps and says what each of their cells costs.
    ///
    /// # Errors
    /// As [`Reader::read`].
    fn costs(&mut self, steps: &[u32]) -> Result<Vec<f64>>;
}

impl LanguageModel for Model {
    fn arrangement(&self) -> &Arrangement {
        self.arrangement()
    }

    fn codec(&self) -> Option<&CodecIdentity> {
        self.config().codec.as_ref()
    }

    fn classes(&self) -> &[String] {
        &self.config().classes
    }

    fn n_parameters(&self) -> usize {
        self.n_parameters()
    }

    fn begin(&self, class: Option<u32>) -> Result<Box<dyn Reader + '_>> {
        let classes = if self.config().classes.is_empty() { Vec::new() } else { vec![class] };
        if let (true, Some(_)) = (classes.is_empty(), class) {
            return Err(Error::config("class", "the model has no classes"));
        }
        let mut state = self.init();
        let start = self.arrangement().start();
        let hidden = self.step(&mut state, Steps { tokens: &start, batch: 1, classes: &classes })?;
        Ok(Box::new(ModelReader { model: self, state, classes, last: hidden, logits: None, deep: None }))
    }
}

/// A sequence that a [`Model`] reads.
#[derive(Debug)]
struct ModelReader<'m> {
    model: &'m Model,
    state: State,
    classes: Vec<Option<u32>>,
    /// What the next step is predicted from, `[1, 1, dim]`.
    last: Tensor,
    /// Of all streams, once they were asked for.
    logits: Option<Vec<f32>>,
    /// The step whose codes are predicted one after the other, and those that it was given.
    deep: Option<(DepthState, Vec<u32>)>,
}

impl ModelReader<'_> {
    /// Reads steps and gives all of `[1, n_steps, dim]`.
    fn advance(&mut self, steps: &[u32]) -> Result<Tensor> {
        let steps = Steps { tokens: steps, batch: 1, classes: &self.classes };
        let hidden = self.model.step(&mut self.state, steps)?;
        let n_steps = hidden.dim(1)?;
        self.last = hidden.narrow(1, n_steps - 1, 1)?.force_contiguous()?;
        (self.logits, self.deep) = (None, None);
        Ok(hidden)
    }

    fn deep_logits(&mut self, known: &[u32]) -> Result<Vec<f32>> {
        let depth = self.model.depth().ok_or(Error::Shape { what: "depth", expected: 1, actual: 0 })?;
        let goes_on = |read: &[u32]| known.len() > read.len() && known.starts_with(read);
        let (mut state, mut read, mut logits) = match self.deep.take() {
            Some((state, read)) if goes_on(&read) => (state, read, None),
            // The first codes of a step, or others than before.
            _ => {
                let mut state = depth.begin(&self.last.squeeze(1)?)?;
                let logits = depth.step(&mut state, None)?;
                (state, Vec::new(), Some(logits))
            }
        };
        for &token in &known[read.len()..] {
            logits = Some(depth.step(&mut state, Some(token))?);
            read.push(token);
        }
        let logits = logits.ok_or(Error::Shape { what: "stream", expected: known.len() + 1, actual: 0 })?;
        self.deep = Some((state, read));
        Ok(logits.to_vec1()?)
    }
}

impl Reader for ModelReader<'_> {
    fn read(&mut self, steps: &[u32]) -> Result<()> {
        self.advance(steps).map(drop)
    }

    fn logits(&mut self, known: &[u32]) -> Result<Vec<f32>> {
        if self.model.depth().is_some() {
            return self.deep_logits(known);
        }
        let (expected, actual) = (self.model.columns().len(), known.len());
        let columns = self.model.columns().get(known.len()).cloned();
        let columns = columns.ok_or(Error::Shape { what: "stream", expected, actual })?;
        if self.logits.is_none() {
            self.logits = Some(self.model.logits(&self.last)?.flatten_all()?.to_vec1()?);
        }
        Ok(self.logits.iter().flat_map(|all| &all[columns.clone()]).copied().collect())
    }

    fn costs(&mut self, steps: &[u32]) -> Result<Vec<f64>> {
        let before = self.last.clone();
        let hidden = self.advance(steps)?;
        let n_steps = hidden.dim(1)?;
        let hidden = match n_steps {
            1 => before,
            _ => Tensor::cat(&[before, hidden.narrow(1, 0, n_steps - 1)?.contiguous()?], 1)?,
        };
        let logits = match self.model.depth() {
            Some(depth) => depth.logits(&hidden.squeeze(0)?, steps)?,
            None => self.model.logits(&hidden)?.squeeze(0)?,
        };
        cell_costs(&logits, self.model.columns(), steps, self.model.arrangement())
    }
}

/// What every cell costs, by the logits of its step.
///
/// # Shapes
/// `logits` `[n_steps, n_columns]`, `steps` and the result `[n_steps, n_streams]`.
pub(crate) fn cell_costs(
    logits: &Tensor,
    columns: &[Range<usize>],
    steps: &[u32],
    arrangement: &Arrangement,
) -> Result<Vec<f64>> {
    let n_columns = logits.dim(1)?;
    let logits = logits.flatten_all()?.to_vec1::<f32>()?;
    let rows = logits.par_chunks_exact(n_columns.max(1)).zip(steps.par_chunks_exact(columns.len().max(1)));
    let of_step = |(row, step): (&[f32], &[u32])| -> Result<Vec<f64>> {
        let cells = columns.iter().zip(step).enumerate();
        let cost = |(stream_idx, (columns, &token)): (usize, (&Range<usize>, &u32))| -> Result<f64> {
            if token == arrangement.special(stream_idx, Special::Empty) {
                return Ok(0.0);
            }
            let cost = -log_probability(&mut row[columns.clone()].to_vec(), token as usize)?;
            if !cost.is_finite() {
                let what = format!("the cost of a token of stream {}", stream_idx + 1);
                return Err(Error::NotFinite { step: 0, what, value: cost });
            }
            Ok(cost)
        };
        cells.map(cost).collect()
    };
    let costs: Result<Vec<Vec<f64>>> = rows.map(of_step).collect();
    Ok(costs?.into_iter().flatten().collect())
}
