use super::*;

fn transform(height: usize, width: usize, channels: usize, groups: Option<usize>) -> Transform {
    let scattering = Scattering { angles: 8, groups };
    Transform::new(&Picture { channels, height, width, scattering: Some(scattering) }, &scattering)
}

fn features(picture: &[u8], height: usize, width: usize) -> Vec<f32> {
    let mut features = Vec::new();
    transform(height, width, 1, None).apply(picture, &mut features);
    assert_eq!(features.len(), 81 * (height / 4) * (width / 4));
    features
}

fn close(a: f32, b: f32, what: &str) {
    assert!((a - b).abs() < 2e-5, "{what}: {a} {b}");
}

/// A smooth spot around (x, y) on black.
fn spot(n: usize, x: f32, y: f32) -> Vec<u8> {
    let light = |i: usize, j: usize| {
        let (a, b) = (i as f32 - x, j as f32 - y);
        (255.0 * (-(a * a + 2.0 * b * b) / 12.0).exp()) as u8
    };
    (0..n * n).map(|at| light(at / n, at % n)).collect()
}

#[test]
fn a_plain_picture_has_no_waves() {
    let plain = features(&[204; 28 * 28], 28, 28);
    for (i, x) in plain.iter().enumerate() {
        close(*x, if i < 49 { 0.8 } else { 0.0 }, &format!("feature {i}"));
    }
}

#[test]
fn what_moves_by_a_step_of_the_maps_moves_their_values() {
    // Far from the edges, where the circle closes in black.
    let (here, there) = (features(&spot(64, 32.0, 32.0), 64, 64), features(&spot(64, 36.0, 28.0), 64, 64));
    let at = |f: &[f32], map: usize, i: usize, j: usize| f[map * 256 + i * 16 + j];
    let mut seen = 0f32;
    for map in 0..81 {
        for i in 4..12 {
            for j in 4..12 {
                close(at(&there, map, i + 1, j - 1), at(&here, map, i, j), &format!("map {map} at {i}, {j}"));
                seen = seen.max(at(&here, map, i, j));
            }
        }
    }
    assert!(seen > 0.1);
}

#[test]
fn waves_are_found_in_their_own_direction_and_scale() {
    // Vertical stripes of the small scale's frequency, 3π/4: they change along j.
    let stripes: Vec<u8> = (0..28 * 28)
        .map(|at| (127.5 + 127.0 * libm::cos(0.75 * std::f64::consts::PI * (at % 28) as f64)) as u8)
        .collect();
    let f = features(&stripes, 28, 28);
    let strength = |map: usize| f[map * 49 + 24];
    let strongest = (1..17).max_by(|a, b| strength(*a).total_cmp(&strength(*b))).unwrap();
    // Angle number i is (3 - i)·π/8 from the direction of i, and that of j is a quarter turn from it.
    assert!(strongest == 8, "{strongest}");
    assert!((9..17).all(|large| strength(large) < strength(8) / 2.0));
}

/// Kymatio 0.3.0 (NumPy), `Scattering2D(J=2, shape=(8, 12))` of the picture below over 255: the value of every map at (1, 1).
#[rustfmt::skip]
const KYMATIO: [f32; 81] = [
    0.555465, 0.057918, 0.046127, 0.038016, 0.055310, 0.048213, 0.076511, 0.063798, 0.037351,
    0.019613, 0.013424, 0.020018, 0.014249, 0.022854, 0.019145, 0.010822, 0.026149, 0.010403,
    0.008661, 0.005398, 0.006593, 0.004715, 0.002916, 0.004146, 0.008827, 0.006174, 0.006622,
    0.003675, 0.004521, 0.007852, 0.006903, 0.004018, 0.003435, 0.002139, 0.002140, 0.005262,
    0.002248, 0.003747, 0.004915, 0.004823, 0.003624, 0.005238, 0.006958, 0.009010, 0.010876,
    0.006112, 0.003981, 0.004410, 0.003316, 0.003389, 0.002943, 0.002567, 0.001626, 0.002893,
    0.002414, 0.003086, 0.002660, 0.005140, 0.006972, 0.008519, 0.005847, 0.006953, 0.007626,
    0.006241, 0.003334, 0.006600, 0.005068, 0.003521, 0.003504, 0.004817, 0.006862, 0.005108,
    0.005777, 0.005918, 0.003150, 0.002983, 0.004083, 0.004440, 0.003719, 0.007517, 0.012261,
];

#[test]
fn the_features_are_those_of_kymatio() {
    let picture: Vec<u8> = (0..8 * 12)
        .map(|at| (at / 12, at % 12))
        .map(|(i, j)| ((i * 37 + j * 91 + i * j * 13) % 256) as u8)
        .collect();
    let f = features(&picture, 8, 12);
    for (map, wanted) in KYMATIO.iter().enumerate() {
        close(f[map * 6 + 4], *wanted, &format!("map {map}"));
    }
}

#[test]
fn channels_come_one_after_the_other() {
    let (a, b) = (spot(16, 8.0, 8.0), spot(16, 5.0, 9.0));
    let mut both = Vec::new();
    transform(16, 16, 2, None).apply(&[&a[..], &b[..]].concat(), &mut both);
    assert_eq!(both, [features(&a, 16, 16), features(&b, 16, 16)].concat());
}

#[test]
fn groups_are_normalised_within_a_picture() {
    let mut f = vec![9.0];
    transform(28, 28, 1, Some(27)).apply(&spot(28, 14.0, 14.0), &mut f);
    assert_eq!((f.len(), f[0]), (1 + 81 * 49, 9.0), "what was there before stays");
    for group in f[1..].chunks(3 * 49) {
        let mean = group.iter().sum::<f32>() / 147.0;
        let variance = group.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 147.0;
        // A group of hardly any variance stays below one.
        assert!(mean.abs() < 1e-4 && (0.0..1.001).contains(&variance), "{mean} {variance}");
    }
    assert!(f[1..148].iter().any(|x| x.abs() > 1.0));
}
