use super::*;
use std::path::PathBuf;

const NORTH: &str = "id,x\n1,a\n10,\"b, c\"\n3,d\n";
const SOUTH: &str = "id,x\n7,e\n8,f\n";
const HELD: &str = "id,place,x\n2,north,g\n9,south,h\n";

fn again(held: &str, seed: u64) -> Result<Resplit, ResplitError> {
    resplit(&[("north", NORTH), ("south", SOUTH)], held, "place", "id", 0.3, seed)
}

fn ids(csv: &str) -> Vec<&str> {
    csv.lines().skip(1).map(|l| l.split(',').next().unwrap()).collect()
}

#[test]
fn no_row_is_lost_and_a_second_split_starts_from_the_same_pools() {
    let first = again(HELD, 1).unwrap();
    let mut all: Vec<&str> = first.train.iter().flat_map(|(_, csv)| ids(csv)).collect();
    all.extend(ids(&first.held_out));
    all.sort_unstable();
    assert_eq!(all, ["1", "10", "2", "3", "7", "8", "9"]);
    let groups: Vec<(&str, &str)> = first.train.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    for seed in 1..20 {
        let direct = again(HELD, seed).unwrap();
        let mut reversed = groups.clone();
        reversed.reverse();
        assert_eq!(resplit(&groups, &first.held_out, "place", "id", 0.3, seed).unwrap(), direct);
        let other_way = resplit(&reversed, &first.held_out, "place", "id", 0.3, seed).unwrap();
        assert_eq!(other_way.held_out, direct.held_out);
    }
}

#[test]
fn what_does_not_fit_together_is_named() {
    for (held, message) in [
        ("id,place,x\n2,west,g\n", "the held-out rows name a group \"west\" that no file was given for"),
        ("id,x\n2,g\n", "held-out rows: the header has no column \"place\""),
        ("", "held-out rows: the header has no column \"place\""),
        ("id,place,y\n", "north: the columns differ from those of the held-out rows without \"place\""),
        ("id,place,x\n3,north,g\n", "north: two rows have the id \"3\""),
        ("id,place,x\n3,north\n", "held-out rows: line 2 does not have as many fields as the header"),
    ] {
        assert_eq!(again(held, 1).unwrap_err().to_string(), message);
    }
}

/// The files under `examples/hospitals` are the split of seed 1 of what they hold together.
#[test]
fn seed_1_gives_the_shipped_hospital_files() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/hospitals"));
    let read = |path: &str| std::fs::read_to_string(folder.join(path)).unwrap();
    let names = ["cleveland", "hungary", "long-beach", "switzerland"];
    let files = names.map(|n| read(&format!("{n}/heart.csv")));
    let held = read("evaluator/heldout.csv");
    let groups: Vec<(&str, &str)> = names.into_iter().zip(files.iter().map(String::as_str)).collect();

    let shipped = resplit(&groups, &held, "dataset", "id", 0.2, 1).unwrap();
    for ((name, file), (again, csv)) in groups.iter().zip(&shipped.train) {
        assert_eq!(name, again);
        assert_eq!(file, csv, "{name}");
    }
    assert_eq!(shipped.held_out, held);
    // 920 patients: 304, 293, 200 and 123, of each a fifth held out.
    assert_eq!(files.each_ref().map(|f| f.lines().count() - 1), [243, 234, 160, 98]);
    assert_eq!(held.lines().count() - 1, 61 + 59 + 40 + 25);
    assert_ne!(resplit(&groups, &held, "dataset", "id", 0.2, 2).unwrap().held_out, held);
}
