//! Where to compute, as the data owner says it: `auto`, `cpu` or `cuda:N`.

use std::fmt;
use std::str::FromStr;

/// Where the data owner wants training to happen. Client and trainer read the word alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// This CUDA device and no other.
    Cuda(u8),
}

/// A word that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a device: say auto, cpu or cuda:N (for example cuda:0; N is at most 255)")]
pub struct NotADevice(String);

impl FromStr for DeviceChoice {
    type Err = NotADevice;

    fn from_str(text: &str) -> Result<Self, NotADevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => text
                .strip_prefix("cuda:")
                // A sign would be taken by the number's own parser.
                .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|n| n.parse::<u8>().ok())
                .map(Self::Cuda)
                .ok_or_else(|| NotADevice(text.to_owned())),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_written() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Cuda(255)]
        {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        for text in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "CPU", "cuda:256", "cuda:300"] {
            assert_eq!(text.parse::<DeviceChoice>(), Err(NotADevice(text.into())));
        }
    }
}
