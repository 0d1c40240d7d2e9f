//! What generation and evaluation need of a model, whichever family it is of.

use crate::config::CodecIdentity;
use crate::depth::{Depth, DepthState};
use crate::error::{Error, Result};
use crate::model::{Model, State, Steps};
use crate::ops::log_probability;
use crate::pattern::{Arrangement, Tokens};
use crate::vocabulary::Special;
use candle_core::Tensor;
use rayon::prelude::*;
use std::fmt::Debug;
use std::ops::Range;

/// Steps that are read at once.
pub(crate) const CHUNK: usize = 256;

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

    /// Begins sequences that have read different steps and go on with the same ones, as one batch.
    ///
    /// # Errors
    /// [`Error::Config`] for a class that the model does not have, [`Error::Shape`] for no sequences, and as
    /// [`Reader::read`].
    fn begin_together(&self, openings: &[Opening<'_>]) -> Result<Box<dyn Reader + '_>>;

    /// Begins a sequence of a class, `None` for that of none.
    ///
    /// # Errors
    /// As [`LanguageModel::begin_together`].
    fn begin(&self, class: Option<u32>) -> Result<Box<dyn Reader + '_>> {
        self.begin_together(&[Opening { class, steps: &[] }])
    }

    /// The index of a class, if the model has it.
    fn class_idx(&self, name: &str) -> Option<u32> {
        self.classes().iter().position(|class| class == name).map(|idx| idx as u32)
    }

    /// What every cell of a sequence costs, `-ln p` in nats; 0 where nothing is predicted.
    ///
    /// # Shapes
    /// `[n_steps, n_streams]`, as the tokens.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Token`] for tokens of another pattern; [`Error::NotFinite`] when a cost is
    /// no number.
    fn costs(&self, tokens: &Tokens, class: Option<u32>) -> Result<Vec<f64>> {
        let mut reader = self.begin(class)?;
        let n_streams = self.arrangement().n_streams();
        if tokens.n_streams() != n_streams {
            let (expected, actual) = (n_streams, tokens.n_streams());
            return Err(Error::Shape { what: "streams of a sequence", expected, actual });
        }
        let mut costs = Vec::with_capacity(tokens.values().len());
        for (chunk_idx, steps) in tokens.values().chunks(CHUNK * n_streams).enumerate() {
            let own = reader.costs(steps).map_err(|error| match error {
                Error::NotFinite { step, what, value } => {
                    Error::NotFinite { step: step + (chunk_idx * CHUNK) as u64, what, value }
                }
                other => other,
            });
            costs.append(&mut own?);
        }
        Ok(costs)
    }
}

/// How a sequence begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opening<'a> {
    /// Its class, `None` for that of none.
    pub class: Option<u32>,
    /// What it reads alone, behind the start: `[n_steps, n_streams]`.
    pub steps: &'a [u32],
}

/// Sequences that read the same steps: a batch of them, or a single one.
pub trait Reader: Debug + Send {
    /// Reads the next steps, `[n_steps, n_streams]`.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Token`] for steps of another pattern.
    fn read(&mut self, steps: &[u32]) -> Result<()>;

    /// The logits of stream `known.len()` of the next step, whose streams before it hold `known`.
    ///
    /// # Shapes
    /// `[batch, n_columns]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a stream that there is not; [`Error::Token`] for a token that its stream does not
    /// have, where that changes the logits.
    fn logits(&mut self, known: &[u32]) -> Result<Vec<f32>>;

    /// Reads the next steps and says what each of their cells costs.
    ///
    /// # Shapes
    /// `[batch, n_steps, n_streams]`.
    ///
    /// # Errors
    /// As [`Reader::read`]; [`Error::NotFinite`] when a cost is no number, at a step counted from these.
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

    fn begin_together(&self, openings: &[Opening<'_>]) -> Result<Box<dyn Reader + '_>> {
        let has_classes = !self.config().classes.is_empty();
        if !has_classes && openings.iter().any(|opening| opening.class.is_some()) {
            return Err(Error::config("class", "the model has no classes"));
        }
        let start = self.arrangement().start();
        let (mut states, mut ends) = (Vec::new(), Vec::new());
        for opening in openings {
            let class = [opening.class];
            let classes = if has_classes { class.as_slice() } else { &[] };
            let mut state = self.init();
            let mut hidden = self.step(&mut state, Steps { tokens: &start, batch: 1, classes })?;
            for tokens in opening.steps.chunks(CHUNK * start.len()) {
                hidden = self.step(&mut state, Steps { tokens, batch: 1, classes })?;
            }
            states.push(state);
            ends.push(last_step(&hidden)?);
        }
        Ok(Box::new(ModelReader {
            model: self,
            state: State::merge(states)?,
            classes: openings.iter().filter(|_| has_classes).map(|opening| opening.class).collect(),
            next: Next::new(Tensor::cat(&ends, 0)?),
            deep: None,
        }))
    }
}

/// Sequences that a [`Model`] reads.
#[derive(Debug)]
struct ModelReader<'m> {
    model: &'m Model,
    state: State,
    classes: Vec<Option<u32>>,
    next: Next,
    /// The step whose codes are predicted one after the other, and those that it was given.
    deep: Option<(DepthState, Vec<u32>)>,
}

impl ModelReader<'_> {
    fn deep_logits(&mut self, depth: &Depth, known: &[u32]) -> Result<Vec<f32>> {
        let goes_on = |read: &[u32]| known.len() > read.len() && known.starts_with(read);
        let (mut state, mut read, mut logits) = match self.deep.take() {
            Some((state, read)) if goes_on(&read) => (state, read, None),
            // The first codes of a step, or others than before.
            _ => {
                let mut state = depth.begin(&self.next.hidden.squeeze(1)?)?;
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
        Ok(logits.flatten_all()?.to_vec1()?)
    }

    /// Reads steps and gives all of `[batch, n_steps, dim]`.
    fn advance(&mut self, steps: &[u32]) -> Result<Tensor> {
        let batch = self.next.batch()?;
        let steps = Steps { tokens: &steps.repeat(batch), batch, classes: &self.classes };
        self.deep = None;
        self.model.step(&mut self.state, steps)
    }
}

impl Reader for ModelReader<'_> {
    fn read(&mut self, steps: &[u32]) -> Result<()> {
        self.next = Next::new(last_step(&self.advance(steps)?)?);
        Ok(())
    }

    fn logits(&mut self, known: &[u32]) -> Result<Vec<f32>> {
        let model = self.model;
        match model.depth() {
            Some(depth) => self.deep_logits(depth, known),
            None => self.next.logits(model.columns(), known.len(), |hidden| model.logits(hidden)),
        }
    }

    fn costs(&mut self, steps: &[u32]) -> Result<Vec<f64>> {
        let hidden = self.advance(steps)?;
        let before = self.next.follow(&hidden)?;
        let steps = steps.repeat(hidden.dim(0)?);
        let logits = match self.model.depth() {
            Some(depth) => depth.logits(&before.flatten_to(1)?, &steps)?,
            None => self.model.logits(&before)?.flatten_to(1)?,
        };
        cell_costs(&logits, self.model.columns(), &steps, self.model.arrangement())
    }
}

/// What the next step of some sequences is predicted from.
#[derive(Debug)]
pub(crate) struct Next {
    /// `[batch, 1, dim]`.
    hidden: Tensor,
    /// Of all streams, `[batch, n_columns]`, once they were asked for.
    logits: Option<Vec<f32>>,
}

impl Next {
    /// `hidden`: `[batch, 1, dim]`.
    pub(crate) fn new(hidden: Tensor) -> Self {
        Self { hidden, logits: None }
    }

    pub(crate) fn batch(&self) -> Result<usize> {
        Ok(self.hidden.dim(0)?)
    }

    /// The logits of one stream, `[batch, n_columns]`; `head` gives those of all streams.
    pub(crate) fn logits(
        &mut self,
        columns: &[Range<usize>],
        stream_idx: usize,
        head: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Vec<f32>> {
        let (expected, actual) = (columns.len(), stream_idx);
        let own = columns.get(stream_idx).ok_or(Error::Shape { what: "stream", expected, actual })?;
        let all = match &self.logits {
            Some(all) => all,
            None => self.logits.insert(head(&self.hidden)?.flatten_all()?.to_vec1()?),
        };
        let n_columns = columns.last().map_or(0, |last| last.end);
        Ok(all.chunks_exact(n_columns.max(1)).flat_map(|row| &row[own.clone()]).copied().collect())
    }

    /// Moves on by the steps that `hidden`, `[batch, n_steps, dim]`, is of; gives what they were predicted
    /// from, of the same shape.
    pub(crate) fn follow(&mut self, hidden: &Tensor) -> Result<Tensor> {
        let before = std::mem::replace(self, Self::new(last_step(hidden)?)).hidden;
        Ok(match hidden.dim(1)? {
            1 => before,
            n_steps => Tensor::cat(&[before, hidden.narrow(1, 0, n_steps - 1)?.contiguous()?], 1)?,
        })
    }
}

/// The last of `[batch, n_steps, dim]`, in memory of its own.
pub(crate) fn last_step(hidden: &Tensor) -> Result<Tensor> {
    Ok(hidden.narrow(1, hidden.dim(1)? - 1, 1)?.force_contiguous()?)
}

/// What every cell costs, by the logits of its step.
///
/// # Shapes
/// `logits` `[n_steps, n_columns]`, `steps` and the result `[n_steps, n_streams]`; the steps of one item of a
/// batch follow those of the one before.
pub(crate) fn cell_costs(
    logits: &Tensor,
    columns: &[Range<usize>],
    steps: &[u32],
    arrangement: &Arrangement,
) -> Result<Vec<f64>> {
    let n_columns = logits.dim(1)?;
    let logits = logits.flatten_all()?.to_vec1::<f32>()?;
    let rows = logits.par_chunks_exact(n_columns.max(1)).zip(steps.par_chunks_exact(columns.len().max(1)));
    let of_step = |(step_idx, (row, step)): (usize, (&[f32], &[u32]))| -> Result<Vec<f64>> {
        let cells = columns.iter().zip(step).enumerate();
        let cost = |(stream_idx, (columns, &token)): (usize, (&Range<usize>, &u32))| -> Result<f64> {
            if token == arrangement.special(stream_idx, Special::Empty) {
                return Ok(0.0);
            }
            let cost = -log_probability(&mut row[columns.clone()].to_vec(), token as usize)?;
            if !cost.is_finite() {
                let what = format!("the cost of a token of stream {}", stream_idx + 1);
                return Err(Error::NotFinite { step: step_idx as u64, what, value: cost });
            }
            Ok(cost)
        };
        cells.map(cost).collect()
    };
    let costs: Result<Vec<Vec<f64>>> = rows.enumerate().map(of_step).collect();
    Ok(costs?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Pattern;
    use candle_core::Device;
    use codec_core::CodeLayout;

    #[test]
    fn a_cost_that_is_no_number_says_at_which_step() {
        let arrangement = Arrangement::new(Pattern::Parallel, CodeLayout::uniform(1, 2).unwrap()).unwrap();
        let logits = |odd: f32| Tensor::new(&[[0.0, 0.0], [odd, 0.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        // The last step is empty.
        let columns = 0..2;
        let columns = std::slice::from_ref(&columns);
        let costs = |odd| cell_costs(&logits(odd), columns, &[1, 0, 2], &arrangement);
        let half = std::f64::consts::LN_2;
        assert!(costs(0.0).unwrap().iter().zip([half, half, 0.0]).all(|(x, y)| (x - y).abs() < 1e-6));
        assert!(matches!(costs(f32::NAN), Err(Error::NotFinite { step: 1, .. })));
    }
}
