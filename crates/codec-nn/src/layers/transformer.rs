//! Transformer layers, put together from the layers beside this file.

use super::{Activation, Attention, ChannelScale, Linear, Norm, Residual};

/// Two linear maps around an activation.
pub type FeedForward = (Linear, Activation, Linear);

/// One half of a transformer layer: what is normalised first, then worked on, scaled, and added to its input.
pub type Branch<L> = Residual<(Norm, L, Option<ChannelScale>)>;

/// A layer of a decoder-only transformer that normalises first: attention, then a feed-forward network.
///
/// `Vec<TransformerLayer>` is the transformer. It serves as a part of a codec and as a language model alike;
/// embeddings, a last norm and heads are the model's own.
///
/// # Source
/// Vaswani et al. 2017, "Attention is all you need", section 3; the norm inside the branch: Xiong et al. 2020,
/// "On layer normalization in the transformer architecture", figure 1b.
pub type TransformerLayer = (Branch<Attention>, Branch<FeedForward>);

/// Puts a layer together; `scales` multiply what the two branches add.
pub fn transformer_layer(
    norms: [Norm; 2],
    attention: Attention,
    feed_forward: FeedForward,
    scales: [Option<ChannelScale>; 2],
) -> TransformerLayer {
    let ([first_norm, second_norm], [first_scale, second_scale]) = (norms, scales);
    (
        Residual::new((first_norm, attention, first_scale)),
        Residual::new((second_norm, feed_forward, second_scale)),
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_trains};
    use super::*;
    use crate::layers::{AttentionSpec, AttentionWeights, Layer, LayerNorm, RmsNorm, Sight, Unary};
    use crate::ops::testing::{Rng, assert_close, values};
    use candle_core::Tensor;
    use codec_kernels::Heads;
    use proptest::prelude::*;

    const CHANNELS: usize = 6;

    /// Norm, attention, scale, norm, feed-forward, scale.
    fn weights(rng: &mut Rng) -> Vec<Tensor> {
        let hidden = 5;
        let shapes: [&[usize]; 9] = [
            &[CHANNELS],
            &[3 * CHANNELS, CHANNELS],
            &[CHANNELS, CHANNELS],
            &[CHANNELS],
            &[CHANNELS],
            &[CHANNELS],
            &[hidden, CHANNELS],
            &[CHANNELS, hidden],
            &[CHANNELS],
        ];
        shapes.iter().map(|shape| (rng.tensor(shape) * 0.8).unwrap()).collect()
    }

    fn layer(w: &[Tensor]) -> TransformerLayer {
        let weights = AttentionWeights {
            input: w[1].clone(),
            input_bias: None,
            output: w[2].clone(),
            output_bias: None,
        };
        let heads = Heads { n_heads: 3, n_kv_heads: 3, dim: 2 };
        let spec =
            AttentionSpec { heads, sight: Sight::Past { context: Some(4) }, rotary_base: Some(10_000.0) };
        let linear = |weight: &Tensor| Linear::new(weight, None).unwrap();
        let scale = |scale: &Tensor| Some(ChannelScale::new(scale.clone()).unwrap());
        transformer_layer(
            [
                Norm::Layer(LayerNorm::new(w[0].clone(), Some(w[4].clone()), 1e-5).unwrap()),
                Norm::Rms(RmsNorm::new(w[5].clone(), 1e-5).unwrap()),
            ],
            Attention::new(&weights, spec).unwrap(),
            (linear(&w[6]), Activation::Unary(Unary::Gelu), linear(&w[7])),
            [scale(&w[3]), scale(&w[8])],
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn streams(n_layers in 1usize..4, n_steps in 1usize..30, seed in any::<u64>()) {
            let mut rng = Rng::new(seed);
            let net: Vec<_> = (0..n_layers).map(|_| layer(&weights(&mut rng))).collect();
            assert_streams(&net, &rng.tensor(&[3, n_steps, CHANNELS]), &mut rng);
        }
    }

    #[test]
    fn branches_are_added_to_what_they_read() {
        let mut rng = Rng::new(1);
        let (w, xs) = (weights(&mut rng), rng.tensor(&[1, 9, CHANNELS]));
        let net = layer(&w);
        let branch = |branch: &dyn Fn(&Tensor) -> Tensor, xs: &Tensor| (branch(xs) + xs).unwrap();
        let attention = |xs: &Tensor| net.0.inner.forward(xs).unwrap().unwrap();
        let feed_forward = |xs: &Tensor| net.1.inner.forward(xs).unwrap().unwrap();
        let want = branch(&feed_forward, &branch(&attention, &xs));
        assert_close("layer", &values(&net.forward(&xs).unwrap().unwrap()), &values(&want), 1e-6);
    }

    #[test]
    fn trains() {
        let mut rng = Rng::new(2);
        let (w, xs) = (weights(&mut rng), (rng.tensor(&[2, 6, CHANNELS]) * 2.0).unwrap());
        assert_trains(&mut rng, xs, &w, layer);
    }
}
