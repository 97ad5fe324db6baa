use super::*;

fn read(text: &str) -> TrainPlan {
    toml::from_str(&format!("learning_rate = 0.1\nlocal_steps = 20\n{text}")).unwrap()
}

#[test]
fn each_wrong_number_has_its_sentence() {
    for (text, says) in [
        ("momentum = 1.0", "momentum"),
        ("momentum = 0.9\noptimizer = { kind = \"adam\" }", "belongs to sgd; adam has beta1"),
        ("optimizer = { kind = \"adam\", beta1 = 1.0 }", "beta1 of adam"),
        ("optimizer = { kind = \"adamw\", beta2 = -0.1 }", "beta2 of adamw"),
        ("optimizer = { kind = \"adamw\", epsilon = 0.0 }", "epsilon of adamw"),
        ("weight_decay = -1.0", "weight_decay must be"),
        ("weight_decay = 10.0", "weight_decay times learning_rate"),
        ("schedule = { kind = \"cosine\", end = 2.0 }", "end of the cosine schedule"),
        ("schedule = { kind = \"cosine\", warm_up = 21 }", "there are 20 local_steps"),
        ("clip_gradient_norm = 0.0", "clip_gradient_norm"),
        ("early_stop = { patience = 0 }", "patience"),
        ("early_stop = { patience = 1, min_delta = -1.0 }", "min_delta"),
        ("early_stop = { patience = 1, held_out = 0.6 }", "held_out"),
        ("loss = { kind = \"huber\", delta = -1.0 }", "delta"),
        ("proximal = 20.0", "proximal times"),
        ("local_epochs = 1", "exactly one"),
    ] {
        let e = read(text).validate().unwrap_err();
        assert!(e.contains(says), "{text}: {e}");
    }
    // Over the job, only the job knows how many rounds there are.
    read("schedule = { kind = \"cosine\", warm_up = 21, over = \"job\" }").validate().unwrap();
}

#[test]
fn a_plan_of_before_is_written_as_before() {
    let plan = read("momentum = 0.9\nbatch_size = 8");
    let json = r#"{"learning_rate":0.1,"momentum":0.9,"local_steps":20,"batch_size":8}"#;
    assert_eq!(serde_json::to_string(&plan).unwrap(), json);
    assert_eq!(serde_json::from_str::<TrainPlan>(json).unwrap(), plan);
    let sgd = TrainPlan { batch_size: Some(8), momentum: 0.9, ..TrainPlan::sgd(0.1, LocalWork::Steps(20)) };
    assert_eq!(sgd, plan);
}

#[test]
fn a_full_plan_survives_its_document() {
    let plan = read(
        "loss = { kind = \"cross-entropy\", class_weights = [1.0, 3.0] }\n\
         optimizer = { kind = \"adamw\", beta1 = 0.8 }\nschedule = { kind = \"step\", every = 3, factor = 0.5 }\n\
         clip_gradient_norm = 1.0\nearly_stop = { patience = 3 }\nprecision = \"bf16\"",
    );
    plan.validate().unwrap();
    assert_eq!(plan.optimizer, Optimizer::AdamW { beta1: 0.8, beta2: 0.999, epsilon: 1e-8 });
    assert_eq!(plan.weight_decay(), 0.01);
    assert_eq!(plan.early_stop.unwrap().held_out, 0.1);
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<TrainPlan>(&json).unwrap(), plan);
}

#[test]
fn a_record_level_contract_rules_out_what_its_promise_does_not_cover() {
    for (text, says) in [
        ("batch_size = 8", "remove batch_size"),
        ("clip_gradient_norm = 1.0", "remove clip_gradient_norm"),
        ("early_stop = { patience = 1 }", "early_stop does not go"),
        ("precision = \"bf16\"", "remove precision"),
    ] {
        let e = read(text).check_record_privacy().unwrap_err();
        assert!(e.contains(says), "{text}: {e}");
    }
    let epochs = TrainPlan::sgd(0.1, LocalWork::Epochs(1));
    assert!(epochs.check_record_privacy().unwrap_err().contains("local_steps"));
    read("optimizer = { kind = \"adam\" }\nweight_decay = 0.1\nschedule = { kind = \"cosine\" }")
        .check_record_privacy()
        .unwrap();
}
