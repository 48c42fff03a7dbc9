//! Just enough of the ELF format to say what kind of binary a file is.
//!
//! Follows the System V gABI, chapters "ELF Header" and "Program Header", for 64-bit little-endian
//! files. Every offset comes from the file and is checked against its end.

use anyhow::{Context as _, Result, ensure};

const PROGRAM_INTERPRETER: u32 = 3;
const PROGRAM_DYNAMIC: u32 = 2;
const DYNAMIC_NEEDED: u64 = 1;
const SECTION_SYMBOLS: u32 = 2;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    /// Asks for a program interpreter or for shared libraries.
    pub(crate) linking: Linking,
    pub(crate) symbols: Symbols,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Linking {
    Static,
    Dynamic,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Symbols {
    Stripped,
    Present,
}

pub(crate) fn read(file: &[u8]) -> Result<Binary> {
    ensure!(
        file.starts_with(b"\x7fELF\x02\x01"),
        "not a 64-bit little-endian ELF file"
    );
    let mut linking = Linking::Static;
    for header in table(file, 0x20, 0x36, 0x38)? {
        let (kind, offset, size) = (u32_at(header, 0)?, u64_at(header, 8)?, u64_at(header, 32)?);
        let needs_libraries = || -> Result<bool> {
            let entries = part(file, offset, size)?.chunks_exact(16);
            let tags: Vec<u64> = entries
                .map(|entry| u64_at(entry, 0))
                .collect::<Result<_>>()?;
            Ok(tags
                .iter()
                .take_while(|tag| **tag != 0)
                .any(|tag| *tag == DYNAMIC_NEEDED))
        };
        if kind == PROGRAM_INTERPRETER || (kind == PROGRAM_DYNAMIC && needs_libraries()?) {
            linking = Linking::Dynamic;
        }
    }
    let mut symbols = Symbols::Stripped;
    for header in table(file, 0x28, 0x3a, 0x3c)? {
        if u32_at(header, 4)? == SECTION_SYMBOLS {
            symbols = Symbols::Present;
        }
    }
    Ok(Binary { linking, symbols })
}

/// The entries of a header table whose offset, entry size and count stand at these places.
fn table(file: &[u8], offset: usize, size: usize, count: usize) -> Result<Vec<&[u8]>> {
    let (size, count) = (
        u64::from(u16_at(file, size)?),
        u64::from(u16_at(file, count)?),
    );
    let whole = part(file, u64_at(file, offset)?, size * count)?;
    let size = usize::try_from(size)?;
    Ok(if size == 0 {
        Vec::new()
    } else {
        whole.chunks_exact(size).collect()
    })
}

fn part(file: &[u8], offset: u64, size: u64) -> Result<&[u8]> {
    let end = offset.checked_add(size).context("an offset is too large")?;
    file.get(usize::try_from(offset)?..usize::try_from(end)?)
        .context("the file is cut short")
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(array(bytes, at)?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(array(bytes, at)?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(array(bytes, at)?))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let field = at.checked_add(N).and_then(|end| bytes.get(at..end));
    Ok(field.context("the file is cut short")?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one program header of this kind, over a dynamic section of these tags, and one
    /// section header of this kind.
    fn elf(program: u32, tags: &[u64], section: u32) -> Vec<u8> {
        let dynamic: Vec<u8> = tags
            .iter()
            .flat_map(|tag| [tag.to_le_bytes(), [0; 8]].concat())
            .collect();
        let sections_at = 64 + 56 + dynamic.len();
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64, 0);
        file[0x20..0x28].copy_from_slice(&64_u64.to_le_bytes());
        file[0x28..0x30].copy_from_slice(&(sections_at as u64).to_le_bytes());
        for (at, value) in [(0x36, 56_u16), (0x38, 1), (0x3a, 64), (0x3c, 1)] {
            file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let mut header = vec![0; 56];
        header[0..4].copy_from_slice(&program.to_le_bytes());
        header[8..16].copy_from_slice(&120_u64.to_le_bytes());
        header[32..40].copy_from_slice(&(dynamic.len() as u64).to_le_bytes());
        file.extend(header);
        file.extend(dynamic);
        let mut header = vec![0; 64];
        header[4..8].copy_from_slice(&section.to_le_bytes());
        file.extend(header);
        file
    }

    #[test]
    fn a_static_position_independent_binary_is_static_though_it_has_a_dynamic_section() {
        let binary = read(&elf(PROGRAM_DYNAMIC, &[5, 6, 0, 1], 3)).unwrap();
        assert_eq!(
            binary,
            Binary {
                linking: Linking::Static,
                symbols: Symbols::Stripped
            }
        );
    }

    #[test]
    fn a_needed_library_makes_a_binary_dynamic() {
        let binary = read(&elf(PROGRAM_DYNAMIC, &[5, DYNAMIC_NEEDED, 0], 3)).unwrap();
        assert_eq!(binary.linking, Linking::Dynamic);
    }

    #[test]
    fn an_interpreter_makes_a_binary_dynamic() {
        let binary = read(&elf(PROGRAM_INTERPRETER, &[], 3)).unwrap();
        assert_eq!(binary.linking, Linking::Dynamic);
    }

    #[test]
    fn a_symbol_table_is_seen() {
        let binary = read(&elf(PROGRAM_DYNAMIC, &[0], SECTION_SYMBOLS)).unwrap();
        assert_eq!(binary.symbols, Symbols::Present);
    }

    #[test]
    fn a_real_program_is_read_to_the_end() {
        read(&std::fs::read("/proc/self/exe").unwrap()).unwrap();
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_no_panic() {
        let file = elf(PROGRAM_DYNAMIC, &[5, 0], SECTION_SYMBOLS);
        for end in 0..file.len() {
            assert!(read(&file[..end]).is_err(), "cut at {end}");
        }
    }
}
