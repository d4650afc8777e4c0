#include "os/build_id.hpp"

#include "os/open_file.hpp"
#include "os/quiet.hpp"
#include "os/safe_copy.hpp"

#include <elf.h>
#include <link.h>

#include <cstddef>
#include <cstring>

namespace pmr_debug::os {

namespace {

/// What follows a note's name or content begins at a multiple of 4.
constexpr std::uintptr_t padded(std::uintptr_t bytes) noexcept {
    return (bytes + 3) / 4 * 4;
}

/// \p read(offset, to, bytes) reads from the file; offsets of a loaded one are those of its first mapping. \p
/// in_memory: notes are found by their address, not by their place in the file. Returns: the offset of the build id; 0:
/// it has none.
template <class Read>
std::uintptr_t find(bool in_memory, Read&& read) noexcept {
    ElfW(Ehdr) file;
    if (!read(0, &file, sizeof file) || std::memcmp(file.e_ident, ELFMAG, SELFMAG) != 0 ||
        file.e_phentsize != sizeof(ElfW(Phdr))) {
        return 0;
    }
    std::uintptr_t first = 0;  // address of the file's beginning
    for (unsigned i = 0; i < file.e_phnum; ++i) {
        ElfW(Phdr) part;
        if (!read(file.e_phoff + i * sizeof part, &part, sizeof part)) {
            return 0;
        }
        if (part.p_type == PT_LOAD && part.p_offset == 0) {
            first = part.p_vaddr;
        }
        if (part.p_type != PT_NOTE) {
            continue;
        }
        std::uintptr_t at = in_memory ? part.p_vaddr - first : part.p_offset;
        const std::uintptr_t end = at + part.p_filesz;
        ElfW(Nhdr) note;
        while (at + sizeof note <= end && read(at, &note, sizeof note)) {
            const std::uintptr_t content = at + sizeof note + padded(note.n_namesz);
            if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && note.n_descsz >= 8 && content + 8 <= end) {
                return content;
            }
            at = content + padded(note.n_descsz);
        }
    }
    return 0;
}

}  // namespace

std::uintptr_t find_build_id(std::uintptr_t low, std::uintptr_t high) noexcept {
    const std::uintptr_t at = find(true, [=](std::uintptr_t offset, void* to, std::size_t bytes) noexcept {
        if (offset > high - low || bytes > high - low - offset) {
            return false;
        }
        std::memcpy(to, reinterpret_cast<const void*>(low + offset), bytes);
        return true;
    });
    return at != 0 && at + 8 <= high - low ? low + at : 0;
}

std::uint64_t loaded_build_id(std::uintptr_t low, std::uintptr_t high) noexcept {
    const auto read = [=](std::uintptr_t offset, void* to, std::size_t bytes) noexcept {
        return offset <= high - low && bytes <= high - low - offset &&
               safe_copy(to, reinterpret_cast<const void*>(low + offset), bytes);
    };
    std::uint64_t id = 0;
    const std::uintptr_t at = find(true, read);
    return at != 0 && read(at, &id, sizeof id) ? id : 0;
}

std::uint64_t file_build_id(const char* path) noexcept {
    const errno_keeper keep;
    const open_file file(path);
    std::uint64_t id = 0;
    const std::uintptr_t at = find(false, [&file](std::uintptr_t offset, void* to, std::size_t bytes) noexcept {
        return file.read(offset, to, bytes);
    });
    return at != 0 && file.read(at, id) ? id : 0;
}

}  // namespace pmr_debug::os
