//! The models of `benches/dp-sgd` put together by hand, and what a step of each takes.

use super::*;
use crate::nn::made::{P, made};
use crate::nn::pass::Pass;
use std::fs;
use std::time::Instant;
use undertone_core::model::Activation;

fn mlp(batch: usize) -> Workload {
    let spec = ModelSpec::Mlp { hidden: vec![256], activation: Activation::Relu, seed: 1 };
    Workload::new(&spec, &Shape::table(784, 10), batch).unwrap()
}

/// The convolutional network of Tramèr and Boneh 2021 for pictures of 28x28.
fn cnn(batch: usize) -> Workload {
    let input = Input::Image { channels: 1, height: 28, width: 28 };
    let shapes: [&[usize]; 8] =
        [&[16, 1, 8, 8], &[16], &[32, 16, 4, 4], &[32], &[32, 512], &[32], &[10, 32], &[10]];
    let network = made(input, 10, &shapes, |pass, x| {
        let pool = |x: &Tensor| x.f_max_pool2d([2, 2], [1, 1], [0, 0], [1, 1], false);
        let h = pool(&pass.conv2d(x, P(0), Some(P(1)), 2, 3)?.f_tanh()?)?;
        let h = pool(&pass.conv2d(&h, P(2), Some(P(3)), 2, 0)?.f_tanh()?)?;
        let h = pass.linear(&h.f_flatten(1, -1)?, P(4), Some(P(5)))?.f_tanh()?;
        pass.linear(&h, P(6), Some(P(7)))
    });
    Workload::of(network, Target::Class { classes: 10 }, batch)
}

const LAYERS: usize = 4;
const PER_LAYER: usize = 12;

/// An encoder of four layers of width 256 over 64 tokens.
fn transformer(batch: usize) -> Workload {
    let input = Input::Tokens { length: 64, vocabulary: 1000 };
    let (d, wide) = (256, 1024);
    let mut shapes: Vec<Vec<usize>> = vec![vec![1000, d], vec![64, d]];
    for _ in 0..LAYERS {
        let layer: [&[usize]; PER_LAYER] = [
            &[3 * d, d],
            &[3 * d],
            &[d, d],
            &[d],
            &[d],
            &[d],
            &[wide, d],
            &[wide],
            &[d, wide],
            &[d],
            &[d],
            &[d],
        ];
        shapes.extend(layer.map(<[usize]>::to_vec));
    }
    shapes.extend([vec![10, d], vec![10]]);
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let network = made(input, 10, &shapes, |pass, x| {
        let h = pass.embedding(x, P(0))?;
        let mut h = pass.shift(&h, P(1))?;
        for layer in 0..LAYERS {
            h = encoder(pass, &h, 2 + layer * PER_LAYER)?;
        }
        let last = 2 + LAYERS * PER_LAYER;
        pass.linear(&h.f_mean_dim(1i64, false, None::<Kind>)?, P(last), Some(P(last + 1)))
    });
    Workload::of(network, Target::Class { classes: 10 }, batch)
}

fn encoder(pass: &mut Pass<'_>, x: &Tensor, first: usize) -> Result<Tensor, TchError> {
    let p = |i: usize| P(first + i);
    let (rows, length, d, heads) = (x.size()[0], x.size()[1], x.size()[2], 4);
    let qkv = pass.linear(x, p(0), Some(p(1)))?.f_chunk(3, 2)?;
    let split = |t: &Tensor| t.f_reshape([rows, length, heads, d / heads])?.f_transpose(1, 2);
    let (q, k, v) = (split(&qkv[0])?, split(&qkv[1])?, split(&qkv[2])?);
    let scores = q.f_matmul(&k.f_transpose(2, 3)?)?.f_mul_scalar(((d / heads) as f64).powf(-0.5))?;
    let mixed = scores.f_softmax(3, None::<Kind>)?.f_matmul(&v)?;
    let mixed = pass.linear(&mixed.f_transpose(1, 2)?.f_reshape([rows, length, d])?, p(2), Some(p(3)))?;
    let h = pass.layer_norm(&x.f_add(&mixed)?, p(4), p(5), 1e-5)?;
    let wide = pass.linear(&h, p(6), Some(p(7)))?.f_relu()?;
    let back = pass.linear(&wide, p(8), Some(p(9)))?;
    pass.layer_norm(&h.f_add(&back)?, p(10), p(11), 1e-5)
}

#[test]
fn a_workload_trains_in_both_ways() {
    let work = mlp(4);
    work.plain(2).unwrap();
    work.private(2, RecordMechanism::DiscreteGaussian).unwrap();
    work.private(2, RecordMechanism::FastGaussian).unwrap();
    transformer(2).private(1, RecordMechanism::FastGaussian).unwrap();
    cnn(2).private(1, RecordMechanism::FastGaussian).unwrap();
}

/// Nanoseconds that this thread has computed: other programs on the machine do not count.
fn computed() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts");
    text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("its first number")
}

/// `cargo test -p undertone-train --lib --release -- --ignored --nocapture steps_of`, until the built-in models have these.
#[test]
#[ignore = "a bench: what a step takes, beside a plain one"]
fn steps_of_models_made_by_hand() {
    tch::set_num_threads(1);
    let fast = RecordMechanism::FastGaussian;
    for (name, work, steps, runs) in [
        ("mlp 784-256-10, 256", mlp(256), 20, 9),
        ("cnn 28x28, 256", cnn(256), 4, 9),
        ("transformer 4x256 T=64, 32", transformer(32), 1, 5),
    ] {
        let time = |train: &dyn Fn(u32)| {
            let (start, wall) = (computed(), Instant::now());
            train(1);
            let first = computed() - start;
            train(1 + steps);
            let both = computed() - start;
            ((both - 2 * first) as f64 / f64::from(steps) / 1e6, wall.elapsed().as_secs_f64())
        };
        let median = |mut of: Vec<f64>| {
            of.sort_by(f64::total_cmp);
            of[of.len() / 2]
        };
        let (mut plain, mut private) = (vec![], vec![]);
        for _ in 0..runs {
            plain.push(time(&|n| work.plain(n).unwrap()).0);
            private.push(time(&|n| work.private(n, fast).unwrap()).0);
        }
        let (plain, private) = (median(plain), median(private));
        println!("{name}: plain {plain:.2} ms, private {private:.2} ms, {:.2} times", private / plain);
    }
}
