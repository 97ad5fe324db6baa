//! A limit on everything. Past a limit there is a refusal, never a crash.

/// Longest name of a job, client, tensor or column, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// Longest tensor name, in bytes (PyTorch names nest deeply).
pub const MAX_TENSOR_NAME_BYTES: usize = 256;
/// Most tensors in a model.
pub const MAX_TENSORS: usize = 65_536;
/// Most patterns that name the tensors that are trained.
pub const MAX_TENSOR_PATTERNS: usize = 1024;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Most parameters in a model (10 GB of f32).
pub const MAX_PARAMETERS: u64 = 2_684_354_560;
/// Most columns in a data contract.
pub const MAX_COLUMNS: usize = 10_000;
/// Most values of a category, and most classes of a label.
pub const MAX_CATEGORIES: usize = 10_000;
/// Most features that a data contract may encode to.
pub const MAX_FEATURES: usize = 100_000;
/// Most values of one picture: channels times height times width.
pub const MAX_PICTURE_VALUES: usize = 1 << 20;
/// Most different tokens of a text.
pub const MAX_VOCABULARY: usize = 65_536;
/// Widest layer of a built-in model, be it in units or in channels.
pub const MAX_WIDTH: usize = 65_536;
/// Most layers of one kind in a built-in model: hidden, convolutional, recurrent, attending.
pub const MAX_HIDDEN_LAYERS: usize = 64;
/// Largest kernel, stride or padding of a convolution or a pooling, in picture elements.
pub const MAX_KERNEL: usize = 64;
/// Most values that one layer of a built-in model puts out for one example (1 GiB of f32).
pub const MAX_ACTIVATIONS: usize = 1 << 28;
/// Most places that attention compares with each other.
pub const MAX_ATTENDED: usize = 8192;
/// Most rounds of a job.
pub const MAX_ROUNDS: u32 = 1_000_000;
/// Most local steps, or epochs, in one round.
pub const MAX_LOCAL_STEPS: u32 = 1_000_000;
/// Largest cohort of one round.
pub const MAX_COHORT: u32 = 65_536;
/// Largest weight of one client in the sum.
pub const MAX_WEIGHT: u32 = 1 << 20;
/// Largest job document, in bytes.
pub const MAX_JOB_DOCUMENT_BYTES: usize = 4 << 20;
/// Largest message of free text that a peer may send us (a reason, an error), in bytes.
pub const MAX_TEXT_BYTES: usize = 4 << 10;

/// `text` cut to [`MAX_TEXT_BYTES`] at a character boundary.
pub fn clip_text(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
