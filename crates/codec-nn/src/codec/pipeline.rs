//! A network that runs on long inputs: cut into stages, each of which takes as many steps at a time as suit it.
//!
//! A layer gives the same bits however its input is cut, so the cut is free. At the audio's rate weights are
//! small and activations large: a stage takes few steps, whose activations stay in the cache of one core from
//! layer to layer. Near the latents it is the other way round: a stage takes many steps, so that large weights
//! are read once for all of them. Stages hand steps on as soon as there are enough for the next one, and run
//! at the same time, each on one thread, so that a recurrent stage, which waits for memory, overlaps with
//! convolutions, which do not, and threads meet once in a chunk instead of once in every layer.

use super::Net;
use crate::error::{Error, Result};
use crate::layers::{Chunk, DynLayer, DynState, Flow, Layer, Steps, Work, work};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of the largest activation in a stage: it and the next one fit in the second-level cache of a core.
const CHUNK_BYTES: f64 = 393_216.0;
/// A layer with more bytes of weights than this wants [`ENOUGH_ROWS`].
const LARGE_WEIGHTS: f64 = 524_288.0;
/// Rows of a product that are worth the reading of large weights: the arithmetic takes longer than the reading,
/// which goes on meanwhile.
const ENOUGH_ROWS: f64 = 48.0;
/// Neighbouring layers make one stage when their best chunks differ by less than this factor.
const SIMILAR: f64 = 2.5;
/// The part of the network's work that one stage does at most, where it can be cut: with less, several threads
/// always find something to do.
const MAX_SHARE: f64 = 0.125;
/// Multiply-adds that take as long as the making of one value by an activation.
const VALUE_COST: f64 = 32.0;
/// Up to so many chunks of the stage with the shortest ones the network takes in one piece: a short step of a
/// stream is done soonest so.
const ONE_PIECE: f64 = 4.0;
/// Chunks that may wait before a stage: the stage before it then rests.
const MAX_WAITING: usize = 2;

/// A network and its stages.
#[derive(Debug)]
pub(super) struct Pipeline {
    net: Net,
    stages: Vec<Stage>,
    /// Up to so many steps of input, for one clip, are taken in one piece.
    one_piece: usize,
}

/// Consecutive layers of the network, which one thread at a time runs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stage {
    layers: Range<usize>,
    /// Steps of input at a time, for one clip.
    n_steps: usize,
}

/// The state of a stream.
pub(super) type State = Vec<DynState>;

impl Pipeline {
    /// Cuts `net`, which takes `input`.
    pub(super) fn new(net: Net, input: Flow) -> Self {
        let parts = parts(&net, input);
        let groups = groups(&parts);
        let shortest = groups.iter().map(|(_, seconds)| *seconds).filter(|seconds| *seconds > 0.0);
        let one_piece = ONE_PIECE * shortest.fold(f64::INFINITY, f64::min) * input.rate;
        Self { stages: stages(&parts, groups), net, one_piece: one_piece as usize }
    }

    pub(super) fn init(&self) -> State {
        self.net.init()
    }

    /// Takes the next steps of a stream, `[batch, time, channels]`, and gives what is complete, as
    /// [`Layer::step`] of the network does.
    pub(super) fn step(&self, state: &mut State, steps: Option<Steps>, end: bool) -> Result<Option<Steps>> {
        let (batch, n_steps) =
            steps.as_ref().map_or(Ok((1, 0)), |steps| steps.dims3().map(|(batch, n, _)| (batch, n)))?;
        // Other devices have no such caches, and each of their calls costs too much to make it short.
        let on_cpu = steps.as_ref().is_some_and(|steps| steps.is_on_cpu());
        let fits = n_steps <= self.one_piece / batch.max(1);
        match steps {
            Some(steps) if on_cpu && !fits && state.len() == self.net.len() => {
                self.run(state, steps, batch, end)
            }
            steps => Ok(self.net.step(state, Chunk { steps, end })?.steps),
        }
    }

    fn run(
        &self,
        mut states: &mut [DynState],
        steps: Steps,
        batch: usize,
        end: bool,
    ) -> Result<Option<Steps>> {
        let mut nodes = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let (own, rest) = states.split_at_mut(stage.layers.len());
            states = rest;
            let layers = &self.net[stage.layers.clone()];
            nodes.push(Node {
                layers,
                states: Some(own),
                queue: Queue::default(),
                chunk: stage.chunk(batch),
                is_over: false,
            });
        }
        let mut schedule = Schedule { nodes, outputs: Vec::new(), n_active: 1, end, error: None };
        if let Some(first) = schedule.nodes.first_mut() {
            first.queue.push(steps)?;
            first.queue.is_closed = true;
        }
        let schedule = Mutex::new(schedule);
        let n_threads = rayon::current_num_threads();
        rayon::scope(|scope| work_off(scope, &schedule, n_threads));
        let mut schedule = schedule.into_inner().unwrap_or_else(PoisonError::into_inner);
        match schedule.error {
            Some(error) => Err(error),
            None => Steps::join(&mut schedule.outputs),
        }
    }
}

impl Stage {
    /// Steps at a time for so many clips side by side.
    fn chunk(&self, batch: usize) -> usize {
        (self.n_steps / batch.max(1)).max(1)
    }
}

/// A layer of the network.
struct Part {
    /// Steps per second of its input.
    rate: f64,
    /// Seconds of a stream that it should take at a time; infinite where it does not matter.
    seconds: f64,
    cost: f64,
}

/// Cuts groups of layers that do much of the work.
fn stages(parts: &[Part], groups: Vec<(Range<usize>, f64)>) -> Vec<Stage> {
    let most = MAX_SHARE * parts.iter().map(|part| part.cost).sum::<f64>();
    let mut stages = Vec::new();
    for (layers, seconds) in groups {
        for layers in shares(parts, layers, most) {
            let n_steps = (seconds * parts[layers.start].rate).ceil().max(1.0) as usize;
            stages.push(Stage { layers, n_steps });
        }
    }
    stages
}

/// What each layer of `net` wants and costs.
fn parts(net: &Net, input: Flow) -> Vec<Part> {
    let mut flow = input;
    let part = |layer| {
        let rate = flow.rate;
        let list = work(layer, flow);
        flow = list.last().map_or(flow, |last| last.output);
        let seconds = list.iter().map(best_seconds).fold(f64::INFINITY, f64::min);
        Part { rate, seconds, cost: list.iter().map(cost).sum() }
    };
    net.iter().map(part).collect()
}

/// Neighbours whose best chunks are similar, and the least of these, in seconds.
fn groups(parts: &[Part]) -> Vec<(Range<usize>, f64)> {
    let mut groups: Vec<(Range<usize>, f64)> = Vec::new();
    let mut greatest = 0.0_f64;
    // Layers that do not care take what the one before them does, and the first ones what comes after them.
    let first = parts.iter().map(|part| part.seconds).find(|seconds| seconds.is_finite()).unwrap_or(0.0);
    for (layer_idx, part) in parts.iter().enumerate() {
        let before = groups.last().map_or(first, |(_, least)| *least);
        let seconds = if part.seconds.is_finite() { part.seconds } else { before };
        match groups.last_mut() {
            Some((layers, least)) if greatest.max(seconds) <= SIMILAR * least.min(seconds) => {
                layers.end = layer_idx + 1;
                *least = least.min(seconds);
                greatest = greatest.max(seconds);
            }
            _ => {
                groups.push((layer_idx..layer_idx + 1, seconds));
                greatest = seconds;
            }
        }
    }
    groups
}

/// Cuts `layers` into runs that cost about `most` each.
fn shares(parts: &[Part], layers: Range<usize>, most: f64) -> Vec<Range<usize>> {
    let mut shares = Vec::new();
    let (mut first, mut cost) = (layers.start, 0.0);
    for layer_idx in layers.clone() {
        // Rather too much than too little where that is nearer.
        if layer_idx > first && cost + 0.5 * parts[layer_idx].cost > most {
            shares.push(first..layer_idx);
            (first, cost) = (layer_idx, 0.0);
        }
        cost += parts[layer_idx].cost;
    }
    shares.push(first..layers.end);
    shares
}

/// Seconds of a stream that a layer should take at a time.
fn best_seconds(work: &Work<'_>) -> f64 {
    let bytes = 4.0 * work.input.values().max(work.output.values());
    let cached = CHUNK_BYTES / bytes.max(1.0);
    if work.n_weights as f64 * 4.0 < LARGE_WEIGHTS {
        return cached;
    }
    let rows = work.multiply_adds / work.n_weights as f64;
    cached.max(ENOUGH_ROWS / rows)
}

/// About how long a layer takes, in multiply-adds.
fn cost(work: &Work<'_>) -> f64 {
    work.multiply_adds + VALUE_COST * work.output.values()
}

/// Steps that wait for a stage.
#[derive(Default)]
struct Queue {
    pieces: VecDeque<Steps>,
    n_steps: usize,
    /// Whether the stage before has given its last.
    is_closed: bool,
}

impl Queue {
    fn push(&mut self, steps: Steps) -> Result<()> {
        self.n_steps += steps.n_steps()?;
        self.pieces.push_back(steps);
        Ok(())
    }

    /// Takes the first `n` steps in pieces, or all where there are fewer.
    fn take(&mut self, n: usize) -> Result<Vec<Option<Steps>>> {
        let mut missing = n.min(self.n_steps);
        self.n_steps -= missing;
        let mut taken = Vec::new();
        while missing > 0
            && let Some(piece) = self.pieces.pop_front()
        {
            let len = piece.n_steps()?;
            if len > missing {
                self.pieces.push_front(piece.narrow(missing, len - missing)?);
            }
            taken.push(Some(piece.narrow(0, len.min(missing))?));
            missing -= len.min(missing);
        }
        Ok(taken)
    }
}

/// A stage during one call.
struct Node<'a> {
    layers: &'a [DynLayer],
    /// Gone while a thread runs the stage.
    states: Option<&'a mut [DynState]>,
    queue: Queue,
    chunk: usize,
    /// Whether the stage has taken its last chunk.
    is_over: bool,
}

/// What runs and what waits.
struct Schedule<'a> {
    nodes: Vec<Node<'a>>,
    outputs: Vec<Option<Steps>>,
    /// Threads at work.
    n_active: usize,
    /// Whether the stream ends with this call.
    end: bool,
    error: Option<Error>,
}

/// A chunk for a stage.
struct Job<'a> {
    node_idx: usize,
    layers: &'a [DynLayer],
    states: &'a mut [DynState],
    /// One after the other; joined by the thread that runs the stage.
    pieces: Vec<Option<Steps>>,
    end: bool,
}

impl Job<'_> {
    fn run(&mut self) -> Result<Option<Steps>> {
        let mut chunk = Chunk { steps: Steps::join(&mut std::mem::take(&mut self.pieces))?, end: self.end };
        for (layer, state) in self.layers.iter().zip(self.states.iter_mut()) {
            chunk = layer.step(state, chunk)?;
        }
        Ok(chunk.steps)
    }
}

impl<'a> Schedule<'a> {
    /// The last stage that can run: what it gives is soon used up.
    ///
    /// It computes nothing, for it runs while others wait: a thread that shares out work may take up another call's
    /// meanwhile, which could wait for this one.
    fn next_job(&mut self) -> Result<Option<Job<'a>>> {
        let Some(node_idx) = (0..self.nodes.len()).rev().find(|&node_idx| self.can_run(node_idx)) else {
            return Ok(None);
        };
        let node = &mut self.nodes[node_idx];
        let pieces = node.queue.take(node.chunk)?;
        node.is_over = node.queue.is_closed && node.queue.n_steps == 0;
        let (layers, end) = (node.layers, self.end && node.is_over);
        Ok(node.states.take().map(|states| Job { node_idx, layers, states, pieces, end }))
    }

    fn can_run(&self, node_idx: usize) -> bool {
        let node = &self.nodes[node_idx];
        let has_work = node.queue.n_steps >= node.chunk || node.queue.is_closed;
        let is_free = node.states.is_some() && !node.is_over && self.error.is_none();
        let next = self.nodes.get(node_idx + 1);
        is_free && has_work && next.is_none_or(|next| next.queue.n_steps < MAX_WAITING * next.chunk)
    }

    /// Puts back the states of a stage and hands on what it gave.
    fn finish(&mut self, node_idx: usize, states: &'a mut [DynState], steps: Result<Option<Steps>>) {
        let node = &mut self.nodes[node_idx];
        node.states = Some(states);
        let is_over = node.is_over;
        let steps = steps.unwrap_or_else(|error| {
            self.error.get_or_insert(error);
            None
        });
        match self.nodes.get_mut(node_idx + 1) {
            Some(next) => {
                if let Some(Err(error)) = steps.map(|steps| next.queue.push(steps)) {
                    self.error.get_or_insert(error);
                }
                next.queue.is_closed = is_over;
            }
            None => self.outputs.push(steps),
        }
    }
}

/// Runs stages until none can run; calls other threads when several can.
///
/// A thread without work leaves and is never blocked, so calls may be nested in the tasks of one pool.
fn work_off<'s, 'a: 's>(scope: &rayon::Scope<'s>, schedule: &'s Mutex<Schedule<'a>>, n_threads: usize) {
    loop {
        let (mut job, is_alone) = {
            let mut now = lock(schedule);
            let job = now.next_job().unwrap_or_else(|error| {
                now.error.get_or_insert(error);
                None
            });
            let Some(job) = job else {
                now.n_active -= 1;
                return;
            };
            let others = (0..now.nodes.len()).any(|node_idx| now.can_run(node_idx));
            if others && now.n_active < n_threads {
                now.n_active += 1;
                scope.spawn(move |scope| work_off(scope, schedule, n_threads));
            }
            (job, now.n_active < n_threads)
        };
        let steps = if is_alone { job.run() } else { codec_kernels::on_this_thread(|| job.run()) };
        lock(schedule).finish(job.node_idx, job.states, steps);
    }
}

fn lock<'m, 'a>(schedule: &'m Mutex<Schedule<'a>>) -> MutexGuard<'m, Schedule<'a>> {
    schedule.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{
        Activation, Conv1d, ConvSpec, ConvTranspose1d, Fill, Lstm, LstmWeights, Padding, Residual, Trim,
    };
    use crate::ops::testing::{Rng, bits};

    const CHANNELS: usize = 2;

    fn conv(rng: &mut Rng, c_in: usize, c_out: usize, kernel: usize, stride: usize) -> DynLayer {
        let padding = Padding::same(kernel, stride, 1, false, Fill::Reflect);
        let spec = ConvSpec { stride, padding, ..ConvSpec::default() };
        DynLayer::new(Conv1d::new(&rng.tensor(&[c_out, c_in, kernel]), None, spec).unwrap())
    }

    /// Every kind of lag and both changes of rate.
    fn net(rng: &mut Rng) -> Net {
        let lstm = LstmWeights {
            input: rng.tensor(&[24, 6]),
            recurrent: rng.tensor(&[24, 6]),
            input_bias: rng.tensor(&[24]),
            recurrent_bias: rng.tensor(&[24]),
        };
        vec![
            conv(rng, CHANNELS, 4, 7, 1),
            DynLayer::new(Residual::new(vec![DynLayer::new(Activation::elu(1.0)), conv(rng, 4, 4, 3, 1)])),
            conv(rng, 4, 6, 4, 2),
            DynLayer::new(Residual::new(Lstm::new(vec![lstm]).unwrap())),
            DynLayer::new(ConvTranspose1d::same(&rng.tensor(&[6, 3, 4]), None, 2, false).unwrap()),
            DynLayer::new(Trim { left: 1, right: 2 }),
            conv(rng, 3, 1, 5, 1),
        ]
    }

    /// A pipeline of stages of one or more layers with small chunks, unlike each other.
    fn cut(net: Net, rng: &mut Rng) -> Pipeline {
        let mut stages = Vec::new();
        let mut first = 0;
        while first < net.len() {
            let last = net.len().min(first + 1 + rng.below(2));
            stages.push(Stage { layers: first..last, n_steps: 1 + rng.below(7) });
            first = last;
        }
        Pipeline { net, stages, one_piece: 4 }
    }

    /// As a tensor, and as a codec's streams have them.
    fn both_kinds(xs: &candle_core::Tensor) -> [Steps; 2] {
        [xs.clone().into(), Steps::floats_of(xs)]
    }

    #[test]
    fn gives_the_bits_of_the_network_however_it_is_cut_and_on_any_number_of_threads() {
        let mut rng = Rng::new(1);
        for round in 0..60 {
            let (net, batch, n_steps) = (net(&mut rng), 1 + round % 2, 8 + rng.below(120));
            let xs = rng.tensor(&[batch, n_steps, CHANNELS]);
            let want = bits(&net.forward(&xs).unwrap().unwrap());
            let pipeline = cut(net, &mut rng);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1 + round % 4).build().unwrap();
            let split = 1 + rng.below(n_steps - 1);
            for steps in both_kinds(&xs) {
                let got = pool.install(|| {
                    let mut state = pipeline.init();
                    let first = pipeline.step(&mut state, Some(steps.narrow(0, split).unwrap()), false);
                    let rest = Some(steps.narrow(split, n_steps - split).unwrap());
                    let last = pipeline.step(&mut state, rest, true);
                    Steps::join(&mut [first.unwrap(), last.unwrap()]).unwrap().unwrap()
                });
                assert_eq!(bits(&got.into_tensor().unwrap()), want, "round {round}: {:?}", pipeline.stages);
            }
        }
    }

    #[test]
    fn large_chunks_do_not_keep_threads_waiting_for_each_other() {
        const WIDE: usize = 96;
        let mut rng = Rng::new(7);
        let net: Net = (0..6).map(|_| conv(&mut rng, WIDE, WIDE, 1, 1)).collect();
        // Small pieces that become large chunks, and the other way round.
        let stages = (0..6).map(|i| Stage { layers: i..i + 1, n_steps: if i % 2 == 0 { 300 } else { 1100 } });
        let pipeline = Pipeline { net, stages: stages.collect(), one_piece: 4 };
        let xs = rng.tensor(&[1, 8000, WIDE]);
        let want = bits(&pipeline.net.forward(&xs).unwrap().unwrap());
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for _ in 0..20 {
                // Threads that have no memory yet.
                let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
                let [_, floats] = both_kinds(&xs);
                let got = pool.install(|| {
                    rayon::join(
                        || pipeline.step(&mut pipeline.init(), Some(floats.clone()), true).unwrap(),
                        || pipeline.step(&mut pipeline.init(), Some(floats.clone()), true).unwrap(),
                    )
                });
                for ys in [got.0, got.1] {
                    assert!(bits(&ys.unwrap().into_tensor().unwrap()) == want);
                }
            }
            done.send(()).unwrap();
        });
        is_done.recv_timeout(std::time::Duration::from_secs(120)).unwrap();
    }

    #[test]
    fn every_complete_output_comes_at_once() {
        let mut rng = Rng::new(2);
        let (net, xs) = (net(&mut rng), rng.tensor(&[1, 100, CHANNELS]));
        let (mut whole, mut state) = (net.init(), net.init());
        let pipeline = cut(net, &mut rng);
        let bits = |steps: Option<Steps>| bits(&steps.unwrap().into_tensor().unwrap());
        for start in (0..100).step_by(50) {
            let steps = xs.narrow(1, start, 50).unwrap();
            let want = pipeline.net.step(&mut whole, Chunk::next(steps.clone())).unwrap().steps;
            let got = pipeline.step(&mut state, Some(steps.into()), false).unwrap();
            assert_eq!(bits(got), bits(want));
        }
    }

    #[test]
    fn an_error_ends_the_call() {
        let mut rng = Rng::new(3);
        let mut net = net(&mut rng);
        // Gets six channels where it wants five.
        net.insert(4, conv(&mut rng, 5, 5, 1, 1));
        let pipeline = cut(net, &mut rng);
        let xs = rng.tensor(&[1, 200, CHANNELS]);
        assert!(matches!(
            pipeline.step(&mut pipeline.init(), Some(xs.into()), true),
            Err(Error::Shape { .. })
        ));
    }

    #[test]
    fn stages_have_small_chunks_of_wide_steps_and_large_ones_of_large_weights() {
        let mut rng = Rng::new(4);
        let net = vec![
            conv(&mut rng, 1, 64, 7, 1),
            conv(&mut rng, 64, 64, 7, 1),
            conv(&mut rng, 64, 512, 192, 96),
            conv(&mut rng, 512, 1024, 3, 1),
        ];
        let parts = parts(&net, Flow { rate: 24_000.0, channels: 1 });
        // 384 KiB of 64 channels; 48 windows of 96 steps.
        assert_eq!(groups(&parts), [(0..2, 1536.0 / 24_000.0), (2..4, 4608.0 / 24_000.0)]);
    }

    #[test]
    fn layers_that_do_not_care_follow_their_neighbours() {
        let part = |seconds| Part { rate: 100.0, seconds, cost: 1.0 };
        let parts = [f64::INFINITY, 2.0, f64::INFINITY, 9.0, f64::INFINITY].map(part);
        assert_eq!(groups(&parts), [(0..3, 2.0), (3..5, 9.0)]);
    }

    #[test]
    fn what_the_first_layer_could_take_does_not_keep_the_others_in_one_piece() {
        let mut rng = Rng::new(6);
        let net = vec![DynLayer::new(Activation::elu(1.0)), conv(&mut rng, 1, 64, 7, 1)];
        let pipeline = Pipeline::new(net, Flow { rate: 24_000.0, channels: 1 });
        assert_eq!(pipeline.stages[0].n_steps, 98_304);
        assert_eq!(pipeline.one_piece, 4 * 1536);
    }

    #[test]
    fn stages_share_the_work() {
        let mut rng = Rng::new(5);
        let net: Net = (0..20).map(|_| conv(&mut rng, 16, 16, 7, 1)).collect();
        let stages = Pipeline::new(net, Flow { rate: 24_000.0, channels: 16 }).stages;
        let lens: Vec<usize> = stages.iter().map(|stage| stage.layers.len()).collect();
        assert_eq!(lens, [3, 3, 3, 3, 3, 3, 2]);
        assert!(stages.iter().all(|stage| stage.n_steps == 6144), "{stages:?}");
    }
}
