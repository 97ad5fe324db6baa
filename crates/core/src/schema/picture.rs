//! Pictures: two IDX files, one of pictures and one of labels, as MNIST and its kin have them.

use super::InvalidContract;
use super::label::{Label, LabelKind};
use crate::limits::MAX_PICTURE_VALUES;
use crate::shape::Input;
use serde::{Deserialize, Serialize};

/// Most directions of a scattering transform.
const MAX_ANGLES: usize = 16;
/// Highest and widest picture of one.
const MAX_SCATTERED: usize = 256;

/// The size of every picture. Values are bytes, scaled from 0..255 to [0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// 1 for grey, 3 for colours.
    #[serde(default = "grey")]
    pub channels: usize,
    /// Rows of picture elements.
    pub height: usize,
    /// Picture elements of a row.
    pub width: usize,
    /// If set, a model sees the maps of a scattering transform in place of the picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scattering: Option<Scattering>,
}

/// A fixed transform of a picture by wavelets of two scales (Bruna and Mallat 2013): features on which a linear model does
/// well. It looks at one picture at a time, so it costs no privacy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scattering {
    /// Directions of the wavelets, L: a channel becomes 1 + 2·L + L² maps, a quarter as high and as wide.
    #[serde(default = "eight")]
    pub angles: usize,
    /// If set, the maps are scaled in this many groups to mean 0 and variance 1 within each picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<usize>,
}

fn eight() -> usize {
    8
}

fn grey() -> usize {
    1
}

impl Picture {
    /// Bytes of one picture.
    pub fn len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Whether a picture holds nothing; a contract's never does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a model sees of a picture.
    pub(super) fn input(&self) -> Input {
        let Self { channels, height, width, scattering } = *self;
        match scattering {
            None => Input::Image { channels, height, width },
            Some(s) => Input::Image { channels: s.maps(channels), height: height / 4, width: width / 4 },
        }
    }

    pub(super) fn validate(&self, label: &Label) -> Result<(), InvalidContract> {
        let bad = |text: String| Err(InvalidContract(text));
        let values = self.channels.checked_mul(self.height).and_then(|n| n.checked_mul(self.width));
        if values.is_none_or(|n| n == 0 || n > MAX_PICTURE_VALUES) {
            return bad(format!(
                "pictures of {}x{}x{}: channels, height and width are at least 1, and their product at most \
                 {MAX_PICTURE_VALUES}",
                self.channels, self.height, self.width
            ));
        }
        if let Some(s) = self.scattering {
            s.validate(self)?;
        }
        if label.column.is_some() {
            return bad("pictures have their labels in a file of its own: remove the label's column".into());
        }
        if let LabelKind::Classes(classes) = &label.kind
            && let Some(v) = classes.iter().flat_map(|c| &c.values).find(|v| v.trim().parse::<u8>().is_err())
        {
            return bad(format!("label value \"{v}\": labels of pictures are whole numbers of 0 to 255"));
        }
        Ok(())
    }
}

impl Scattering {
    /// The maps that pictures of so many channels become.
    fn maps(&self, channels: usize) -> usize {
        channels * (1 + 2 * self.angles + self.angles * self.angles)
    }

    fn validate(&self, picture: &Picture) -> Result<(), InvalidContract> {
        let bad = |text: String| Err(InvalidContract(format!("scattering: {text}")));
        let Picture { channels, height, width, .. } = *picture;
        if [height, width].iter().any(|n| n % 4 != 0 || !(8..=MAX_SCATTERED).contains(n)) {
            return bad(format!("height and width must be multiples of 4 from 8 to {MAX_SCATTERED}"));
        }
        if !(1..=MAX_ANGLES).contains(&self.angles) {
            return bad(format!("angles must be 1 to {MAX_ANGLES}, not {}", self.angles));
        }
        let maps = self.maps(channels);
        if self.groups.is_some_and(|groups| groups == 0 || !maps.is_multiple_of(groups)) {
            return bad(format!("groups must divide the {maps} maps"));
        }
        match maps.checked_mul(height / 4).and_then(|n| n.checked_mul(width / 4)) {
            Some(n) if n <= MAX_PICTURE_VALUES => Ok(()),
            _ => bad(format!(
                "{maps} maps of {}x{} are more than {MAX_PICTURE_VALUES} numbers",
                height / 4,
                width / 4
            )),
        }
    }
}
