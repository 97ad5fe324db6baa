//! Where to compute.

use std::path::{Path, PathBuf};
use tch::{Cuda, Device, Kind, TchError, Tensor};
use undertone_core::device::DeviceChoice;
use undertone_core::plan::Precision;

/// A CUDA device that was asked for and is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "device cuda:{wanted} is not there: libtorch sees {found} CUDA devices{}; say cpu or auto",
    .why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default()
)]
pub struct AbsentDevice {
    /// The device asked for.
    pub wanted: u8,
    /// Number of devices.
    pub found: i64,
    /// Why there is none.
    pub why: Option<String>,
}

/// The device of a choice; never another than the one asked for.
///
/// # Errors
/// [`AbsentDevice`].
pub fn pick(choice: DeviceChoice) -> Result<Device, AbsentDevice> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(if Cuda::is_available() { Device::Cuda(0) } else { Device::Cpu }),
        DeviceChoice::Cuda(wanted) => {
            let found = if Cuda::is_available() { Cuda::device_count() } else { 0 };
            if i64::from(wanted) < found {
                Ok(Device::Cuda(wanted.into()))
            } else {
                Err(AbsentDevice { wanted, found, why: why_no_cuda() })
            }
        }
    }
}

/// Why CUDA cannot be used, for people; `None` if it can.
pub fn why_no_cuda() -> Option<String> {
    if Cuda::is_available() {
        return None;
    }
    let hidden = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    Some(reason(&loaded_libtorch(), Path::new("/dev"), hidden.as_deref()))
}

/// The reason, from the folder of the loaded libtorch, the folder of devices, and `CUDA_VISIBLE_DEVICES`.
fn reason(libtorch: &Libtorch, devices: &Path, hidden: Option<&str>) -> String {
    match &libtorch.dir {
        Some(dir) if !dir.join(CUDA_LIBRARY).exists() => {
            return format!(
                "this libtorch is for the CPU alone: there is no {CUDA_LIBRARY} in {}",
                dir.display()
            );
        }
        _ => {}
    }
    if !devices.join("nvidiactl").exists() {
        return "there is no NVIDIA driver on this machine (no /dev/nvidiactl)".into();
    }
    match hidden {
        Some("" | "-1") => "the variable CUDA_VISIBLE_DEVICES hides all devices".into(),
        _ if !libtorch.has_cuda => format!("{CUDA_LIBRARY} could not be loaded: see the messages above"),
        _ => "libtorch finds no CUDA device that it can use (is the driver new enough?)".into(),
    }
}

const CUDA_LIBRARY: &str = "libtorch_cuda.so";

/// The libtorch that this process has loaded.
#[derive(Debug, PartialEq, Eq)]
struct Libtorch {
    /// Where it lies, where the system tells.
    dir: Option<PathBuf>,
    /// Whether its CUDA part is loaded too.
    has_cuda: bool,
}

fn loaded_libtorch() -> Libtorch {
    Libtorch::of(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default())
}

impl Libtorch {
    /// From the process's memory map.
    fn of(maps: &str) -> Self {
        // The path is the sixth column, and may hold spaces.
        let path = |name: &str| {
            let line = maps.lines().find(|line| line.ends_with(name))?;
            line.find('/').map(|at| PathBuf::from(&line[at..]))
        };
        Self {
            dir: path("/libtorch_cpu.so").and_then(|p| p.parent().map(Path::to_owned)),
            has_cuda: path(&format!("/{CUDA_LIBRARY}")).is_some(),
        }
    }
}

/// libtorch's CUDA library, if it lies beside the loaded libtorch and is not loaded: to be loaded before a program that was
/// linked with a libtorch for the CPU can use CUDA.
pub fn cuda_library_to_load() -> Option<PathBuf> {
    let Libtorch { dir, has_cuda } = loaded_libtorch();
    dir.filter(|_| !has_cuda).map(|dir| dir.join(CUDA_LIBRARY)).filter(|library| library.exists())
}

/// A device as [`DeviceChoice`] writes it.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".into(),
        Device::Cuda(n) => format!("cuda:{n}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The precision that a plan's products are computed in on this device. A device without bfloat16 computes in f32, and
/// the log says so.
pub(crate) fn precision(wanted: Precision, device: Device) -> Precision {
    if wanted == Precision::Bf16 && !has_bf16(device) {
        eprintln!(
            "undertone-trainer: the plan allows bf16, {} has no arithmetic for it: computing in f32",
            device_name(device)
        );
        return Precision::F32;
    }
    wanted
}

/// Whether bfloat16 is arithmetic of the device and not emulated at a loss: of a CPU by its instructions, of a CUDA
/// device by whether libtorch multiplies with it.
fn has_bf16(device: Device) -> bool {
    let multiplies = || -> Result<(), TchError> {
        let one = Tensor::f_ones([8, 8], (Kind::BFloat16, device))?;
        one.f_matmul(&one)?.f_to_kind(Kind::Float)?.f_sum(Kind::Float)?.f_double_value(&[]).map(drop)
    };
    match device {
        Device::Cpu => cpu_has_bf16(),
        _ => multiplies().is_ok(),
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_bf16() -> bool {
    std::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has_bf16() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_refused_and_not_replaced() {
        let e = pick(DeviceChoice::Cuda(200)).unwrap_err();
        assert_eq!(e.wanted, 200, "{e}");
        assert_eq!(pick(DeviceChoice::Cpu), Ok(Device::Cpu));
        assert!(pick(DeviceChoice::Auto).is_ok());
    }

    #[test]
    fn the_loaded_libtorch_is_found() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 42   /opt/my torch/lib/libtorch_cpu.so\n\
                    7f02-7f03 r-xp 00000000 08:01 43   /usr/lib/libc.so.6\n";
        let cpu = Libtorch { dir: Some("/opt/my torch/lib".into()), has_cuda: false };
        assert_eq!(Libtorch::of(maps), cpu);
        let cuda = format!("{maps}7f04-7f05 r-xp 0 08:01 44 /opt/my torch/lib/libtorch_cuda.so\n");
        assert_eq!(Libtorch::of(&cuda), Libtorch { has_cuda: true, ..cpu });
        assert_eq!(Libtorch::of(""), Libtorch { dir: None, has_cuda: false });
    }

    #[test]
    fn why_cuda_is_not_used_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let libtorch = |has_cuda| Libtorch { dir: Some(dir.path().into()), has_cuda };
        let why = |has_cuda, hidden| reason(&libtorch(has_cuda), dir.path(), hidden);
        assert!(why(false, None).contains("for the CPU alone"));
        std::fs::write(dir.path().join(CUDA_LIBRARY), "").unwrap();
        assert!(why(false, None).contains("no NVIDIA driver"));
        std::fs::write(dir.path().join("nvidiactl"), "").unwrap();
        assert!(why(true, Some("")).contains("CUDA_VISIBLE_DEVICES"));
        assert!(why(false, None).contains("could not be loaded"));
        assert!(why(true, Some("0")).contains("driver new enough"));
        if let Err(e) = pick(DeviceChoice::Cuda(200)) {
            assert_eq!(e.to_string().contains('('), why_no_cuda().is_some(), "{e}");
        }
    }
}
