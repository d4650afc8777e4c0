#include "os/elf_functions.hpp"

#include "os/quiet.hpp"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>

namespace pmr_debug::os {

namespace {

/// A file in memory, for reading. Empty if it cannot be had.
class mapped_file {
public:
    explicit mapped_file(const char* path) noexcept {
        const auto descriptor = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0));
        struct stat about {};
        if (descriptor < 0) {
            return;
        }
        if (::fstat(descriptor, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0) {
            void* const p =
                ::mmap(nullptr, static_cast<std::size_t>(about.st_size), PROT_READ, MAP_PRIVATE, descriptor, 0);
            if (p != MAP_FAILED) {
                data_ = static_cast<const unsigned char*>(p);
                bytes_ = static_cast<std::size_t>(about.st_size);
            }
        }
        ::syscall(SYS_close, descriptor);
    }
    mapped_file(const mapped_file&) = delete;
    mapped_file& operator=(const mapped_file&) = delete;
    ~mapped_file() {
        if (data_ != nullptr) {
            ::munmap(const_cast<unsigned char*>(data_), bytes_);
        }
    }

    /// Returns: false if not all of it is there.
    template <class T>
    bool read(std::uint64_t at, T& out) const noexcept {
        if (at > bytes_ || sizeof out > bytes_ - at) {
            return false;
        }
        std::memcpy(&out, data_ + at, sizeof out);
        return true;
    }
    [[nodiscard]] bool holds(std::uint64_t at, std::uint64_t bytes) const noexcept {
        return at <= bytes_ && bytes <= bytes_ - at;
    }
    [[nodiscard]] const unsigned char* at(std::uint64_t offset) const noexcept { return data_ + offset; }

private:
    const unsigned char* data_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace

bool for_each_function(const char* path, void (*visit)(const elf_function&, void*) noexcept, void* context) noexcept {
    const errno_keeper keep;
    const mapped_file file(path);
    ElfW(Ehdr) head;
    if (!file.read(0, head) || std::memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 ||
        head.e_shentsize != sizeof(ElfW(Shdr))) {
        return false;
    }
    for (unsigned i = 0; i < head.e_shnum; ++i) {
        ElfW(Shdr) symbols;
        ElfW(Shdr) names;
        if (!file.read(head.e_shoff + i * sizeof symbols, symbols) || symbols.sh_type != SHT_SYMTAB) {
            continue;
        }
        if (symbols.sh_entsize != sizeof(ElfW(Sym)) || !file.holds(symbols.sh_offset, symbols.sh_size) ||
            !file.read(head.e_shoff + symbols.sh_link * sizeof names, names) ||
            !file.holds(names.sh_offset, names.sh_size) || names.sh_size == 0 ||
            *file.at(names.sh_offset + names.sh_size - 1) != '\0') {
            return false;
        }
        for (std::uint64_t n = 0; n < symbols.sh_size / sizeof(ElfW(Sym)); ++n) {
            ElfW(Sym) s;
            std::memcpy(&s, file.at(symbols.sh_offset + n * sizeof s), sizeof s);
            if ((s.st_info & 15U) == STT_FUNC && s.st_shndx != SHN_UNDEF && s.st_size != 0 &&
                s.st_name < names.sh_size) {
                visit({s.st_value, s.st_size, reinterpret_cast<const char*>(file.at(names.sh_offset + s.st_name))},
                      context);
            }
        }
        return true;
    }
    return false;
}

}  // namespace pmr_debug::os
