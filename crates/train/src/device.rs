//! Where to compute.

use std::fmt;
use std::str::FromStr;
use tch::{Cuda, Device};

/// Where the data owner wants training to happen: `auto`, `cpu` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device if libtorch sees one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// This CUDA device and no other.
    Cuda(usize),
}

/// A choice that cannot be had, or is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not a device.
    #[error("\"{0}\" is not a device: say auto, cpu or cuda:N (for example cuda:0)")]
    Unknown(String),
    /// No such CUDA device.
    #[error(
        "device cuda:{wanted} is not there: libtorch sees {found} CUDA devices (a CPU-only libtorch sees none); \
         say cpu or auto"
    )]
    Absent {
        /// The device asked for.
        wanted: usize,
        /// Number of devices.
        found: i64,
    },
}

impl DeviceChoice {
    /// The device; never another than the one asked for.
    ///
    /// # Errors
    /// [`DeviceError::Absent`].
    pub fn pick(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto => Ok(if Cuda::is_available() { Device::Cuda(0) } else { Device::Cpu }),
            Self::Cuda(wanted) => {
                let found = if Cuda::is_available() { Cuda::device_count() } else { 0 };
                if (wanted as i64) < found {
                    Ok(Device::Cuda(wanted))
                } else {
                    Err(DeviceError::Absent { wanted, found })
                }
            }
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => text
                .strip_prefix("cuda:")
                .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|n| n.parse::<u8>().ok())
                .map(|n| Self::Cuda(n.into()))
                .ok_or_else(|| DeviceError::Unknown(text.to_owned())),
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

/// A device as [`DeviceChoice`] writes it.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".into(),
        Device::Cuda(n) => format!("cuda:{n}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_written() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Cuda(12)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        for text in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "CPU", "cuda:999"] {
            assert_eq!(text.parse::<DeviceChoice>(), Err(DeviceError::Unknown(text.into())));
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_and_not_replaced() {
        let e = DeviceChoice::Cuda(200).pick().unwrap_err();
        assert!(matches!(e, DeviceError::Absent { wanted: 200, .. }), "{e}");
        assert_eq!(DeviceChoice::Cpu.pick(), Ok(Device::Cpu));
        assert!(DeviceChoice::Auto.pick().is_ok());
    }
}
