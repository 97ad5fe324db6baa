//! `undertone-server` as a process, with real clients and real training.

mod buffered;
mod data;
mod fleet;
mod jobs;
mod kills;
mod ledger;
mod own_model;
mod partitions;
mod recovery;
mod set_up;
mod soak;
mod upkeep;

/// A data set that a linear model can divide: y = 1 where x > 0.
fn csv(rows: usize, shift: f64) -> String {
    let mut text = String::from("x,y\n");
    for i in 0..rows {
        let x = (i as f64 + 0.5) / rows as f64 * 2.0 - 1.0;
        text += &format!("{:.4},{}\n", (x * 0.9 + shift).clamp(-1.0, 1.0), u8::from(x > 0.0));
    }
    text
}
