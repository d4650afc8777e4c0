#include "os/elf_functions.hpp"

#include "os/open_file.hpp"
#include "os/quiet.hpp"

#include <elf.h>
#include <link.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstring>

namespace pmr_debug::os {

namespace {

/// Part of a file in memory, for reading. Empty if it cannot be had. Not all of the file: most of it may be debug
/// information, and a process may lock what it maps.
class mapped_part {
public:
    mapped_part(int descriptor, std::uint64_t at, std::uint64_t bytes) noexcept {
        const std::uint64_t before = at % largest_page;
        void* const p = bytes == 0 ? MAP_FAILED
                                   : ::mmap(nullptr, static_cast<std::size_t>(before + bytes), PROT_READ, MAP_PRIVATE,
                                            descriptor, static_cast<off_t>(at - before));
        if (p != MAP_FAILED) {
            mapping_ = p;
            mapped_ = static_cast<std::size_t>(before + bytes);
            data_ = static_cast<const unsigned char*>(p) + before;
        }
    }
    mapped_part(const mapped_part&) = delete;
    mapped_part& operator=(const mapped_part&) = delete;
    ~mapped_part() {
        if (mapping_ != nullptr) {
            ::munmap(mapping_, mapped_);
        }
    }

    [[nodiscard]] const unsigned char* data() const noexcept { return data_; }

private:
    static constexpr std::uint64_t largest_page = std::uint64_t{1} << 16;

    void* mapping_ = nullptr;
    std::size_t mapped_ = 0;
    const unsigned char* data_ = nullptr;
};

}  // namespace

bool for_each_function(const char* path, void (*visit)(const elf_function&, void*) noexcept, void* context) noexcept {
    const errno_keeper keep;
    const open_file file(path);
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
            !file.holds(names.sh_offset, names.sh_size)) {
            return false;
        }
        const mapped_part table(file.descriptor(), symbols.sh_offset, symbols.sh_size);
        const mapped_part text(file.descriptor(), names.sh_offset, names.sh_size);
        if (table.data() == nullptr || text.data() == nullptr || text.data()[names.sh_size - 1] != '\0') {
            return false;
        }
        for (std::uint64_t n = 0; n < symbols.sh_size / sizeof(ElfW(Sym)); ++n) {
            ElfW(Sym) s;
            std::memcpy(&s, table.data() + n * sizeof s, sizeof s);
            if ((s.st_info & 15U) == STT_FUNC && s.st_shndx != SHN_UNDEF && s.st_size != 0 &&
                s.st_name < names.sh_size) {
                visit({s.st_value, s.st_size, reinterpret_cast<const char*>(text.data() + s.st_name)}, context);
            }
        }
        return true;
    }
    return false;
}

}  // namespace pmr_debug::os
