use super::*;
use crate::shape::Target;

const HEART: &str = r#"
    missing = ["", "?"]
    [label]
    column = "num"
    classes = [{ name = "healthy", values = ["0"] }, { name = "ill", values = ["1", "2"] }]
    [[columns]]
    name = "age"
    kind = "number"
    range = [0, 120]
    [[columns]]
    name = "chol"
    kind = "number"
    range = [50, 700]
    optional = true
    missing = ["0"]
    [[columns]]
    name = "sex"
    kind = "category"
    values = ["Male", "Female"]
"#;

const SERIES: &str = r#"
    label = { column = "glucose", range = [40, 400], outside = "clamp" }
    series = { steps = 3, first = 1 }
    columns = [
        { name = "hr_{t}", kind = "number", range = [0, 250], optional = true },
        { name = "sex", kind = "category", values = ["Male", "Female"] },
    ]
"#;

const TEXT: &str = r#"
    label = { column = "mood", classes = [{ name = "low", values = ["0"] }, { name = "high", values = ["1"] }] }
    text = { column = "review", length = 16, tokens = "words", words = ["good", "bad", "!"], lowercase = true }
"#;

const PICTURES: &str = r#"
    min_rows = 10
    picture = { height = 28, width = 28 }
    label = { classes = [{ name = "shirt", values = ["0", "6"] }, { name = "shoe", values = ["7"] }] }
"#;

fn contract(text: &str) -> DataContract {
    toml::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Each of these replacements makes nonsense of `good`, and what is said about it holds these words.
fn refused(good: &str, cases: &[(&str, &str, &str)]) {
    contract(good);
    for (from, to, says) in cases {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        let e = toml::from_str::<DataContract>(&text).unwrap_err().to_string();
        assert!(e.contains(says), "{to}: {e}");
    }
}

#[test]
fn features_are_counted_and_named() {
    let c = contract(HEART);
    assert_eq!(c.feature_names(), ["age", "chol", "chol is missing", "sex=Male", "sex=Female"]);
    assert_eq!((c.inputs(), c.shape().outputs()), (5, 1));
    assert_eq!(c.shape().input, Input::Features { columns: vec![1, 2, 2] });
}

#[test]
fn nonsense_is_refused() {
    refused(
        HEART,
        &[
            ("range = [0, 120]", "range = [120, 0]", "low < high"),
            ("range = [0, 120]", "range = [0, inf]", "finite"),
            ("\"Male\", \"Female\"", "\"Male\", \"Male\"", "no two the same"),
            ("name = \"age\"", "name = \"num\"", "is the label too"),
            ("optional = true", "optional = false", "add optional = true"),
            ("[\"1\", \"2\"]", "[\"0\", \"2\"]", "two classes"),
            ("column = \"num\"", "", "name of its column"),
            ("classes = [", "range = [0, 1]\nclasses = [", "either classes"),
            ("[label]", "picture = { height = 2, width = 2 }\n[label]", "one of them"),
            ("[label]", "colour = 1\n[label]", "colour"),
        ],
    );
}

/// A job is known by the digest of its document: what was written once is written so for ever.
#[test]
fn the_document_of_a_table_never_changes() {
    let written = serde_json::to_string(&contract(HEART)).unwrap();
    assert_eq!(
        written,
        "{\"min_rows\":1,\"missing\":[\"\",\"?\"],\"label\":{\"column\":\"num\",\"classes\":[{\"name\":\"healthy\",\
         \"values\":[\"0\"]},{\"name\":\"ill\",\"values\":[\"1\",\"2\"]}]},\"columns\":[{\"name\":\"age\",\"kind\":\
         \"number\",\"range\":[0.0,120.0],\"outside\":\"refuse\",\"optional\":false,\"missing\":[]},{\"name\":\"chol\",\
         \"kind\":\"number\",\"range\":[50.0,700.0],\"outside\":\"refuse\",\"optional\":true,\"missing\":[\"0\"]},{\
         \"name\":\"sex\",\"kind\":\"category\",\"values\":[\"Male\",\"Female\"],\"optional\":false,\"missing\":[]}]}"
    );
}

#[test]
fn every_kind_is_read_as_it_was_written() {
    let scattered = PICTURES.replace("width = 28", "width = 28, scattering = {}");
    for text in [HEART, SERIES, TEXT, PICTURES, scattered.as_str()] {
        let c = contract(text);
        let json = serde_json::to_string(&c).unwrap();
        assert_eq!(serde_json::from_str::<DataContract>(&json).unwrap(), c, "{json}");
        assert_eq!(contract(&toml::to_string(&c).unwrap()), c);
    }
}

#[test]
fn a_number_is_a_target_of_its_own() {
    let c = contract(SERIES);
    assert_eq!((c.shape().target, c.label().classes()), (Target::Number, &[][..]));
    refused(
        SERIES,
        &[
            ("[40, 400]", "[400, 40]", "the label: range"),
            ("\"clamp\"", "\"missing\"", "cannot be missing"),
            ("range = [40, 400], outside = \"clamp\"", "", "either classes"),
        ],
    );
}

#[test]
fn a_series_has_a_column_for_each_step() {
    let c = contract(SERIES);
    assert_eq!(c.shape().input, Input::Series { steps: 3, features: 4 });
    let names = c.feature_names();
    assert_eq!(names[..4], ["hr_1", "hr_1 is missing", "sex at 1=Male", "sex at 1=Female"]);
    assert_eq!((names.len(), names[8].as_str()), (12, "hr_3"));
    refused(
        SERIES,
        &[
            ("steps = 3", "steps = 0", "at least 1 step"),
            ("steps = 3", "steps = 100_000", "at each of 100000 steps"),
            ("steps = 3", "steps = 3, last = 9", "last"),
            ("hr_{t}", "hr", "none does"),
            ("\"sex\"", "\"hr_2\"", "\"hr_2\" is named twice"),
            ("\"glucose\"", "\"hr_3\"", "is the label too"),
        ],
    );
    // Of the other kind it is a name like any other.
    assert!(toml::from_str::<DataContract>(&HEART.replace("\"age\"", "\"a{t}\"")).is_ok());
}

#[test]
fn texts_have_a_public_vocabulary() {
    let c = contract(TEXT);
    assert_eq!(c.shape().input, Input::Tokens { length: 16, vocabulary: 5 });
    let bytes = "tokens = \"bytes\", ";
    let (from, rest) = ("tokens = \"words\", words = [\"good\", \"bad\", \"!\"], ", TEXT);
    assert_eq!(
        contract(&rest.replace(from, bytes)).shape().input,
        Input::Tokens { length: 16, vocabulary: 257 }
    );
    let letters = rest.replace(from, "tokens = \"characters\", alphabet = \"abc é\", ");
    assert_eq!(contract(&letters).shape().input, Input::Tokens { length: 16, vocabulary: 7 });
    refused(
        TEXT,
        &[
            ("length = 16", "length = 0", "length must be"),
            ("length = 16", "length = 100_001", "length must be"),
            ("tokens = \"words\"", "tokens = \"bytes\"", "takes neither"),
            ("\"good\"", "\"very good\"", "not one word"),
            ("\"good\"", "\" good\"", "not one word"),
            ("\"good\"", "\"Good\"", "never be found"),
            ("\"good\"", "\"bad\"", "twice"),
            ("[\"good\", \"bad\", \"!\"]", "[]", "no word"),
            ("\"review\"", "\"mood\"", "label too"),
            (
                "text =",
                "columns = [{ name = \"a\", kind = \"number\", range = [0, 1] }]\ntext =",
                "one of them",
            ),
        ],
    );
    refused(
        &letters,
        &[("abc é", "abca", "'a' twice"), ("abc é", "abC", "capital"), ("abc é", "", "no character")],
    );
}

#[test]
fn words_are_runs_of_letters_and_digits() {
    let all = |text| words(text).collect::<Vec<_>>();
    assert_eq!(all(" It's 5 o'clock,  été!\n"), ["It", "'", "s", "5", "o", "'", "clock", ",", "été", "!"]);
    assert_eq!(all(" \t"), [""; 0]);
}

#[test]
fn pictures_have_their_labels_elsewhere() {
    let c = contract(PICTURES);
    assert_eq!(c.shape().input, Input::Image { channels: 1, height: 28, width: 28 });
    assert_eq!((c.min_rows(), c.inputs(), c.shape().outputs()), (10, 784, 1));
    assert!(c.missing().is_empty() && c.columns().is_empty() && c.feature_names().is_empty());
    refused(
        PICTURES,
        &[
            ("height = 28", "height = 0", "at least 1"),
            ("height = 28", "height = 9_223_372_036_854_775_807", "at most"),
            ("height = 28", "height = 28, depth = 2", "depth"),
            ("classes =", "column = \"y\", classes =", "remove the label's column"),
            ("\"7\"", "\"seven\"", "0 to 255"),
            ("\"7\"", "\"256\"", "0 to 255"),
            ("min_rows = 10", "missing = [\"\"]", "remove missing"),
        ],
    );
    let scattered = PICTURES.replace("width = 28", "width = 28, scattering = { groups = 27 }");
    let maps = Input::Image { channels: 81, height: 7, width: 7 };
    assert_eq!(contract(&scattered).shape().input, maps);
    refused(
        &scattered,
        &[
            ("width = 28", "width = 30", "multiples of 4"),
            ("groups = 27", "groups = 28", "divide the 81 maps"),
            ("groups = 27", "angles = 17", "1 to 16"),
            ("groups = 27", "scales = 2", "scales"),
        ],
    );
    let age = "picture = { channels = 3, height = 8, width = 8 }\nlabel = { range = [0, 120] }";
    assert_eq!(contract(age).shape().target, Target::Number);
}
