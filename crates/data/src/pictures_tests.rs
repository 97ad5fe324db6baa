use crate::idx::IdxArray;
use crate::{Examples, inspect, load};
use std::path::PathBuf;
use undertone_core::data_files::DataFiles;
use undertone_core::schema::DataContract;
use undertone_core::trainer::TrainerError;

const CONTRACT: &str = "
    min_rows = 3
    picture = { height = 2, width = 3 }
    label = { classes = [{ name = \"a\", values = [\"0\", \"7\"] }, { name = \"b\", values = [\"1\"] }] }
";

fn contract() -> DataContract {
    toml::from_str(CONTRACT).unwrap()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Pictures of these dimensions, numbered bytes, and these labels.
    fn set(&self, dimensions: &[usize], labels: &[u8]) -> DataFiles {
        let n: usize = dimensions.iter().product();
        let pictures = IdxArray { dimensions: dimensions.into(), bytes: (0..n).map(|i| i as u8).collect() };
        let labels = IdxArray { dimensions: vec![labels.len()], bytes: labels.into() };
        let files = DataFiles::pictures(self.path("pictures"), self.path("labels"));
        for (array, path) in [pictures, labels].iter().zip(files.paths()) {
            array.write(&mut std::fs::File::create(path).unwrap()).unwrap();
        }
        files
    }
}

fn problems(files: &DataFiles) -> Vec<String> {
    inspect(files.clone(), &contract()).unwrap().problems
}

#[test]
fn pictures_stay_bytes_and_labels_become_classes() {
    let folder = Folder::new();
    let files = folder.set(&[4, 2, 3], &[7, 1, 0, 1]);
    let set = load(files.clone(), &contract()).unwrap();
    assert_eq!(set.examples, Examples::Bytes((0..24).collect()));
    assert_eq!((set.classes(), set.rows, set.inputs), (&[0, 1, 0, 1][..], 4, 6));
    assert_eq!(set.dimensions, [1, 2, 3]);
    let report = inspect(files, &contract()).unwrap();
    assert_eq!((report.rows, report.class_rows, report.problems.len()), (4, vec![2, 2], 0));
    // The channel may be written or not.
    assert_eq!(load(folder.set(&[4, 1, 2, 3], &[7, 1, 0, 1]), &contract()).unwrap(), set);
    let mut twice = set.clone();
    twice.append(set);
    assert_eq!((twice.rows, twice.classes().len()), (8, 8));
}

#[test]
fn labels_may_be_numbers() {
    let contract: DataContract =
        toml::from_str("picture = { height = 1, width = 1 }\nlabel = { range = [0, 100] }").unwrap();
    let folder = Folder::new();
    let set = load(folder.set(&[2, 1, 1], &[25, 100]), &contract).unwrap();
    assert_eq!(set.labels, crate::Labels::Numbers { scaled: vec![-0.5, 1.0], unit: 50.0 });
    let e = load(folder.set(&[2, 1, 1], &[25, 101]), &contract).unwrap_err().to_string();
    assert!(e.contains("label 2: 101 is outside 0 to 100"), "{e}");
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = Folder::new();
    assert_eq!(problems(&folder.set(&[4, 3, 2], &[0; 4])), ["the pictures are 3x2, the job asks for 1x2x3"]);
    assert_eq!(
        problems(&folder.set(&[4, 2, 3], &[0; 5])),
        ["4 pictures, but 5 labels: the two files do not belong together"]
    );
    assert_eq!(
        problems(&folder.set(&[2, 2, 3], &[0; 2])),
        ["too few pictures: 2, the job asks for at least 3"]
    );
    assert_eq!(
        problems(&folder.set(&[4, 2, 3], &[0, 9, 1, 8])),
        ["label 2: 9 is the value of no class of the job", "label 4: 8 is the value of no class of the job"]
    );
    let files = folder.set(&[4, 2, 3], &[0; 4]);
    let swapped = DataFiles::pictures(files.labels.clone().unwrap(), files.path.clone());
    let said = problems(&swapped).join("\n");
    assert!(
        said.contains("is it the file of labels?") && said.contains("is it the file of pictures?"),
        "{said}"
    );
    let many = problems(&folder.set(&[100, 2, 3], &[9; 100]));
    assert_eq!((many.len(), many[20].as_str()), (21, "and 80 more"));
}

#[test]
fn what_cannot_be_read_is_named_with_its_file() {
    let folder = Folder::new();
    let files = folder.set(&[4, 2, 3], &[0; 4]);
    let refused = |files: &DataFiles, words: &str| {
        for result in
            [inspect(files.clone(), &contract()).map(|_| ()), load(files.clone(), &contract()).map(|_| ())]
        {
            let Err(TrainerError::Data(text)) = result else { panic!("{words}") };
            assert!(text.contains(words), "{words}: {text}");
        }
    };
    let labels = files.labels.clone().unwrap();
    refused(&files.path.clone().into(), "needs a second file");
    refused(&DataFiles::pictures(folder.path("none"), &labels), "none: ");
    let whole = std::fs::read(&files.path).unwrap();
    std::fs::write(&files.path, &whole[..whole.len() - 1]).unwrap();
    refused(&files, "pictures: it is cut off");
    std::fs::write(&files.path, [&whole[..], b"x"].concat()).unwrap();
    refused(&files, "pictures: more bytes follow");
    std::fs::write(&files.path, &whole).unwrap();
    std::fs::write(&labels, "0,1,0,1\n").unwrap();
    refused(&files, "labels: it is no IDX file");
    // A table has its labels in it.
    let table: DataContract = toml::from_str(
        "label = { column = \"y\", range = [0, 1] }\ncolumns = [{ name = \"x\", kind = \"number\", range = [0, 1] }]",
    )
    .unwrap();
    let e = inspect(files, &table).unwrap_err().to_string();
    assert!(e.contains("a file of labels is named too"), "{e}");
}
