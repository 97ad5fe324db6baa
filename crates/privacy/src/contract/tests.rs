//! Contracts as they are written, good and bad.

use super::*;
use undertone_core::config::parse_toml;

const RECORD: &str = "unit = \"record\"\ntrust = \"local\"\nclip_norm = 1\nsampling_rate = 0.25\n\
                      target_epsilon = 5\ndelta = 1e-3\nbudget_epsilon = 10\n";
const CLIENT: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 0.5\nnoise_multiplier = 1.2\n\
                      delta = 1e-5\nbudget_epsilon = 8\n";
const LOCAL: &str = "unit = \"client\"\ntrust = \"local\"\nclip_norm = 0.5\nnoise_multiplier = 4\n\
                     delta = 1e-5\nbudget_epsilon = 8\n";
const NONE: &str = "unit = \"none\"\n";

fn parse(text: &str) -> Result<PrivacyContract, String> {
    parse_toml(text, "job.toml").map_err(|e| e.to_string())
}

#[test]
fn the_shapes_are_read_and_written_back() {
    for text in [RECORD, CLIENT, LOCAL, NONE] {
        let contract = parse(text).unwrap();
        let json = serde_json::to_string(&contract).unwrap();
        assert_eq!(serde_json::from_str::<PrivacyContract>(&json).unwrap(), contract, "{json}");
    }
    let record = parse(RECORD).unwrap();
    assert_eq!((record.unit(), record.trust()), (Unit::Record, Some(Trust::Local)));
    assert_eq!((record.clip_norm(), record.sampling_rate()), (Some(1.0), Some(0.25)));
    assert_eq!(record.noise(), Some(Noise::TargetEpsilon(5.0)));
    assert_eq!(parse(NONE).unwrap().delta(), None);
}

#[test]
fn neighbours_are_a_key_of_client_level_contracts() {
    let with = |text: &str, a: &str| parse(&format!("{text}adjacency = \"{a}\"\n"));
    let central = parse(CLIENT).unwrap();
    assert_eq!(central.adjacency(), Some(Adjacency::AddRemove));
    // The default, written or not, is one contract, and stays unwritten.
    assert_eq!(with(CLIENT, "add-remove"), Ok(central));
    assert!(!serde_json::to_string(&central).unwrap().contains("adjacency"));
    let replace = with(CLIENT, "replace-one").unwrap();
    assert_eq!(replace.adjacency(), Some(Adjacency::ReplaceOne));
    let json = serde_json::to_string(&replace).unwrap();
    assert_eq!(serde_json::from_str::<PrivacyContract>(&json).unwrap(), replace, "{json}");
    // With local trust any two updates are neighbours unless the contract says less.
    let local = parse(LOCAL).unwrap();
    assert_eq!((local.unit(), local.trust()), (Unit::Client, Some(Trust::Local)));
    assert_eq!(local.adjacency(), Some(Adjacency::ReplaceOne));
    assert_eq!(with(LOCAL, "replace-one"), Ok(local));
    let less = with(LOCAL, "add-remove").unwrap();
    assert_eq!(less.adjacency(), Some(Adjacency::AddRemove));
    assert_ne!(less.digest(), local.digest());
    let json = serde_json::to_string(&less).unwrap();
    assert_eq!(serde_json::from_str::<PrivacyContract>(&json).unwrap(), less, "{json}");
    assert_eq!(with(RECORD, "add-remove"), parse(RECORD));
    let e = with(RECORD, "replace-one").unwrap_err();
    assert!(
        e.contains("accounted for adjacency = \"add-remove\" alone") && e.contains("valid contracts are"),
        "{e}"
    );
    assert!(with(NONE, "replace-one").unwrap_err().contains("adjacency would mean nothing"));
    assert!(with(CLIENT, "replace").unwrap_err().contains("did you mean \"replace-one\"?"));
}

#[test]
fn what_has_no_proof_is_refused_with_the_valid_ones() {
    for (base, from, to, says) in [
        (RECORD, "\"local\"", "\"central\"", "does not go with trust"),
        (CLIENT, "trust = \"central\"\n", "", "needs trust"),
        (NONE, "\n", "\ntrust = \"local\"\n", "does not go with trust"),
        (NONE, "\n", "\ndelta = 0.1\n", "delta would mean nothing"),
        (CLIENT, "delta", "sampling_rate = 0.1\ndelta", "no amplification"),
        (LOCAL, "delta", "sampling_rate = 0.1\ndelta", "no amplification"),
        (LOCAL, "clip_norm = 0.5\n", "", "needs clip_norm"),
        (RECORD, "sampling_rate = 0.25\n", "", "needs sampling_rate"),
        (RECORD, "delta = 1e-3\n", "", "needs delta"),
        (RECORD, "budget_epsilon = 10\n", "", "needs budget_epsilon"),
        (RECORD, "clip_norm = 1\n", "", "needs clip_norm"),
        (RECORD, "target_epsilon = 5\n", "", "give noise_multiplier or target_epsilon"),
        (RECORD, "delta", "noise_multiplier = 1\ndelta", "not both"),
    ] {
        let text = base.replacen(from, to, 1);
        assert_ne!(text, base);
        let e = parse(&text).unwrap_err();
        assert!(e.contains(says) && e.contains("valid contracts are"), "{text}: {e}");
    }
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    for (base, from, to, key) in [
        (RECORD, "clip_norm = 1", "clip_norm = nan", "clip_norm"),
        (RECORD, "clip_norm = 1", "clip_norm = inf", "clip_norm"),
        (RECORD, "clip_norm = 1", "clip_norm = 0", "clip_norm"),
        (RECORD, "0.25", "0.0", "sampling_rate"),
        (RECORD, "0.25", "1.01", "sampling_rate"),
        (RECORD, "0.25", "nan", "sampling_rate"),
        (RECORD, "1e-3", "0", "delta"),
        (RECORD, "1e-3", "1", "delta"),
        (RECORD, "1e-3", "nan", "delta"),
        (RECORD, "epsilon = 5", "epsilon = -5", "target_epsilon"),
        (RECORD, "epsilon = 5", "epsilon = 11", "target_epsilon"),
        (RECORD, "epsilon = 5", "epsilon = nan", "target_epsilon"),
        (RECORD, "epsilon = 10", "epsilon = inf", "budget_epsilon"),
        (RECORD, "epsilon = 10", "epsilon = nan", "budget_epsilon"),
        (CLIENT, "1.2", "0.29", "noise_multiplier must be 0.3 to 1000000 (the accountant refuses less"),
        (CLIENT, "1.2", "nan", "noise_multiplier"),
        (CLIENT, "1.2", "inf", "noise_multiplier"),
        (CLIENT, "1.2", "-1", "noise_multiplier"),
    ] {
        let text = base.replacen(from, to, 1);
        assert_ne!(text, base);
        let e = parse(&text).unwrap_err();
        assert!(e.contains(&format!("privacy contract: {key}")) && e.contains("must be"), "{text}: {e}");
    }
}

#[test]
fn unknown_keys_and_words_are_refused_with_the_nearest() {
    let e = parse(&RECORD.replace("clip_norm", "clipnorm")).unwrap_err();
    assert_eq!(e, "job.toml line 3: unknown key \"clipnorm\": did you mean \"clip_norm\"?");
    let e = parse(&RECORD.replace("\"record\"", "\"records\"")).unwrap_err();
    assert!(e.contains("did you mean \"record\"?"), "{e}");
}

#[test]
fn every_term_is_in_the_digest() {
    let contract = parse(RECORD).unwrap();
    assert_eq!(contract.digest(), parse(RECORD).unwrap().digest());
    let mut digests = vec![contract.digest(), parse(CLIENT).unwrap().digest(), parse(NONE).unwrap().digest()];
    for (from, to) in [
        ("clip_norm = 1", "clip_norm = 2"),
        ("0.25", "0.26"),
        ("epsilon = 5", "epsilon = 6"),
        ("target_epsilon", "noise_multiplier"),
        ("1e-3", "1e-4"),
        ("epsilon = 10", "epsilon = 11"),
    ] {
        digests.push(parse(&RECORD.replacen(from, to, 1)).unwrap().digest());
    }
    digests.push(parse(CLIENT).unwrap().with_adjacency(Adjacency::ReplaceOne).unwrap().digest());
    digests.push(parse(LOCAL).unwrap().digest());
    digests.push(parse(&LOCAL.replace("\"local\"", "\"central\"")).unwrap().digest());
    let all = digests.len();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), all);
}

#[test]
fn the_coordinators_noise_is_a_key_of_central_contracts() {
    let with = |text: &str, key: &str| parse(&format!("{text}{key}\n"));
    let central = parse(CLIENT).unwrap();
    assert_eq!(central.mechanism(), Some(CentralMechanism::DiscreteGaussian));
    assert_eq!(with(CLIENT, "mechanism = \"discrete-gaussian\""), Ok(central));
    let adaptive = "adaptive_clip = { min = 0.1, max = 4, count_noise = 5 }";
    let mut digests = vec![central.digest()];
    for key in ["mechanism = \"fast-gaussian\"", "mechanism = \"blt\"", adaptive, "max_weight = 100"] {
        let contract = with(CLIENT, key).unwrap();
        let json = serde_json::to_string(&contract).unwrap();
        assert_eq!(serde_json::from_str::<PrivacyContract>(&json).unwrap(), contract, "{json}");
        assert!(!digests.contains(&contract.digest()));
        digests.push(contract.digest());
        let others = if key.contains("fast") { &[LOCAL][..] } else { &[RECORD, LOCAL] };
        for other in others {
            let e = with(other, key).unwrap_err();
            assert!(e.contains("trust = \"central\" alone") && e.contains("valid contracts are"), "{e}");
        }
        assert!(with(NONE, key).unwrap_err().contains("would mean nothing"));
    }
    let rule = with(CLIENT, adaptive).unwrap().adaptive_clip().unwrap();
    assert_eq!(rule.start().clip_norm(), 0.5);
    let e = with(CLIENT, &format!("mechanism = \"blt\"\n{adaptive}")).unwrap_err();
    assert!(e.contains("adaptive_clip does not go with mechanism = \"blt\""), "{e}");
    let e = with(CLIENT, "adaptive_clip = { min = 1, max = 4, count_noise = 5 }").unwrap_err();
    assert!(e.contains("clip_norm must be between min and max, not 0.5"), "{e}");
    assert_eq!(with(CLIENT, "max_weight = 1"), Ok(central));
    assert!(with(CLIENT, "max_weight = 0").unwrap_err().contains("max_weight must be 1 to"));
    let e = with(CLIENT, "mechanism = \"bltt\"").unwrap_err();
    assert!(e.contains("blt"), "{e}");
}

/// A record-level contract has the choice of the client's own noise; the default stays unwritten, and its digest is what it
/// was before there was a choice.
#[test]
fn the_clients_noise_is_a_key_of_record_level_contracts() {
    let with = |key: &str| parse(&format!("{RECORD}{key}\n"));
    let exact = parse(RECORD).unwrap();
    assert_eq!(exact.record_mechanism(), Some(RecordMechanism::DiscreteGaussian));
    assert_eq!(with("mechanism = \"discrete-gaussian\""), Ok(exact));
    let fast = with("mechanism = \"fast-gaussian\"").unwrap();
    assert_eq!(fast.record_mechanism(), Some(RecordMechanism::FastGaussian));
    assert_eq!(fast.mechanism(), None);
    assert_ne!(fast.digest(), exact.digest());
    let json = serde_json::to_string(&fast).unwrap();
    assert_eq!(serde_json::from_str::<PrivacyContract>(&json).unwrap(), fast, "{json}");
    assert!(!serde_json::to_string(&exact).unwrap().contains("mechanism"));
    for text in [CLIENT, LOCAL, NONE] {
        assert_eq!(parse(text).unwrap().record_mechanism(), None);
    }
}
