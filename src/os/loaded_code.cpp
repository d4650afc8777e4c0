#include "os/loaded_code.hpp"

#include "os/quiet.hpp"
#include "os/safe_copy.hpp"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace pmr_debug::os {

namespace {

template <class T>
bool read_at(std::uintptr_t address, T& out) noexcept {
    return safe_copy(&out, reinterpret_cast<const void*>(address), sizeof out);
}

/// Effects: copies the text at \p from, cut to fit. It is read in pieces, as a page that is not there may follow.
bool read_text(std::uintptr_t from, std::span<char> to) noexcept {
    constexpr std::size_t piece = 64;
    std::size_t n = 0;
    while (n + 1 < to.size()) {
        const std::size_t in_piece = std::min({piece - (from + n) % piece, to.size() - 1 - n});
        if (!safe_copy(to.data() + n, reinterpret_cast<const void*>(from + n), in_piece)) {
            to[n] = '\0';
            return false;
        }
        if (const void* const stop = std::memchr(to.data() + n, '\0', in_piece); stop != nullptr) {
            return true;
        }
        n += in_piece;
    }
    to[n] = '\0';
    return true;
}

void program_path(std::span<char> path) noexcept {
    const long n = ::syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", path.data(), path.size() - 1);
    path[n < 0 ? 0 : static_cast<std::size_t>(n)] = '\0';
}

/// A line of /proc/self/maps: "start-end access offset device inode   path".
struct map_line {
    std::uintptr_t start = 0;
    std::uintptr_t end = 0;
    std::uintptr_t offset = 0;
    std::size_t path_length = 0;
    char path[1024];
};

/// Calls visit(line) for each line until it returns false.
template <class Visit>
void for_each_mapping(Visit visit) noexcept {
    const auto descriptor =
        static_cast<int>(::syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0));
    if (descriptor < 0) {
        return;
    }
    map_line line;
    char text[2048];
    unsigned field = 0;  // start, end, access, offset, device, inode, path
    bool going_on = true;
    for (long n = 0; going_on && (n = ::syscall(SYS_read, descriptor, text, sizeof text)) > 0;) {
        for (const char c : std::span(text, static_cast<std::size_t>(n))) {
            if (c == '\n') {
                line.path[line.path_length] = '\0';
                going_on = visit(line);
                if (!going_on) {
                    break;
                }
                line.start = line.end = line.offset = line.path_length = 0;
                field = 0;
            } else if (field < 6 && (c == ' ' || (field == 0 && c == '-'))) {
                ++field;
            } else if (field == 0 || field == 1 || field == 3) {
                std::uintptr_t& value = field == 0 ? line.start : field == 1 ? line.end : line.offset;
                value = value * 16 + (static_cast<unsigned>(c >= 'a' ? c - 'a' + 10 : c - '0') & 15U);
            } else if (field == 6 && (c != ' ' || line.path_length != 0) && line.path_length + 1 < sizeof line.path) {
                line.path[line.path_length++] = c;
            }
        }
    }
    ::syscall(SYS_close, descriptor);
}

/// Effects: base and dynamic section, as the headers at the start of the file say. Returns: false if that is no such
/// file.
bool read_headers(loaded_code& code) noexcept {
    ElfW(Ehdr) file;
    if (!read_at(code.start, file) || std::memcmp(file.e_ident, ELFMAG, SELFMAG) != 0 ||
        file.e_phentsize != sizeof(ElfW(Phdr))) {
        return false;
    }
    bool have_base = false;
    std::uintptr_t dynamic = 0;
    for (unsigned i = 0; i < file.e_phnum; ++i) {
        ElfW(Phdr) header;
        if (!read_at(code.start + file.e_phoff + i * sizeof header, header)) {
            return false;
        }
        if (header.p_type == PT_LOAD && !have_base) {
            code.base = code.start - (header.p_vaddr - header.p_offset);
            have_base = true;
        } else if (header.p_type == PT_DYNAMIC) {
            dynamic = header.p_vaddr;
        }
    }
    code.dynamic = dynamic != 0 ? code.base + dynamic : 0;
    return have_base;
}

/// Where the dynamic section says that the tables are.
struct tables {
    std::uintptr_t symbols = 0;
    std::uintptr_t names = 0;
    std::size_t name_bytes = 0;
    std::uintptr_t hash = 0;
    std::uintptr_t gnu_hash = 0;
};

bool find_tables(const loaded_code& code, tables& t) noexcept {
    constexpr unsigned most = 256;
    // The loader has added the base already, but not for the kernel's own library.
    const auto address = [&](std::uintptr_t value) { return value < code.start ? value + code.base : value; };
    for (unsigned i = 0; i < most; ++i) {
        ElfW(Dyn) d;
        if (!read_at(code.dynamic + i * sizeof d, d) || d.d_tag == DT_NULL) {
            break;
        }
        switch (d.d_tag) {
            case DT_SYMTAB: t.symbols = address(d.d_un.d_ptr); break;
            case DT_STRTAB: t.names = address(d.d_un.d_ptr); break;
            case DT_STRSZ: t.name_bytes = d.d_un.d_val; break;
            case DT_HASH: t.hash = address(d.d_un.d_ptr); break;
            case DT_GNU_HASH: t.gnu_hash = address(d.d_un.d_ptr); break;
            default: break;
        }
    }
    return t.symbols != 0 && t.names != 0;
}

/// Returns: how many symbols there are, which only the hash tables know.
std::size_t count_symbols(const tables& t) noexcept {
    if (t.hash != 0) {
        std::uint32_t head[2];  // buckets, chains; a chain for each symbol
        return read_at(t.hash, head) ? head[1] : 0;
    }
    std::uint32_t head[4];  // buckets, first symbol, words of the filter, its shift
    if (t.gnu_hash == 0 || !read_at(t.gnu_hash, head)) {
        return 0;
    }
    const std::uintptr_t buckets = t.gnu_hash + sizeof head + head[2] * sizeof(ElfW(Addr));
    std::uint32_t last = 0;
    std::uint32_t some[256];
    for (std::uint32_t i = 0; i < head[0];) {
        const std::uint32_t n = std::min<std::uint32_t>(head[0] - i, 256);
        if (!safe_copy(some, reinterpret_cast<const void*>(buckets + std::size_t{i} * 4), std::size_t{n} * 4)) {
            return 0;
        }
        last = std::max(last, *std::max_element(some, some + n));
        i += n;
    }
    if (last < head[1]) {
        return head[1];
    }
    // The last chain ends at an odd hash.
    const std::uintptr_t chains = buckets + std::size_t{head[0]} * 4;
    for (std::uint32_t hash = 0; (hash & 1U) == 0; ++last) {
        if (!read_at(chains + std::size_t{last - head[1]} * 4, hash)) {
            return 0;
        }
    }
    return last;
}

}  // namespace

loaded_code read_loaded_code(std::uintptr_t address, std::span<char> path) noexcept {
    const errno_keeper keep;
    const std::uintptr_t program_headers = ::getauxval(AT_PHDR);
    path[0] = '\0';
    loaded_code code;
    bool found = false;
    char current[sizeof(map_line::path)] = "";
    for_each_mapping([&](const map_line& line) noexcept {
        const bool same = line.path_length != 0 && std::strcmp(line.path, current) == 0 && line.offset != 0;
        // What a library has beyond its file follows at once, and has no name.
        const bool more = line.path_length == 0 && line.start == code.end && code.start != 0;
        if (same || more) {
            code.end = line.end;
        } else {
            if (found) {
                return false;
            }
            code = {};
            current[0] = '\0';
            if (line.path_length != 0 && line.offset == 0) {
                std::memcpy(current, line.path, line.path_length + 1);
                code.start = line.start;
                code.end = line.end;
            }
        }
        if (line.start <= address && address < line.end) {
            found = true;
        }
        return line.start <= address || found;
    });
    if (!found || code.start == 0 || !read_headers(code)) {
        return {};
    }
    code.program = code.start <= program_headers && program_headers < code.end;
    if (code.program) {
        program_path(path);
    } else {
        const std::size_t n = std::min(std::strlen(current), path.size() - 1);
        std::memcpy(path.data(), current, n);
        path[n] = '\0';
    }
    return code;
}

loaded_code find_loaded_code(std::uintptr_t address, std::span<char> path) noexcept {
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 35)
    const errno_keeper keep;
    path[0] = '\0';
    dl_find_object found{};
    if (::_dl_find_object(reinterpret_cast<void*>(address), &found) != 0) {
        return {};
    }
    link_map entry{};
    if (!safe_copy(&entry, found.dlfo_link_map, sizeof entry) ||
        !read_text(reinterpret_cast<std::uintptr_t>(entry.l_name), path)) {
        return {};
    }
    // Unloaded meanwhile, what was read may be anything.
    dl_find_object still{};
    if (::_dl_find_object(reinterpret_cast<void*>(address), &still) != 0 ||
        still.dlfo_link_map != found.dlfo_link_map || still.dlfo_map_start != found.dlfo_map_start) {
        path[0] = '\0';
        return {};
    }
    loaded_code code;
    code.start = reinterpret_cast<std::uintptr_t>(found.dlfo_map_start);
    code.end = reinterpret_cast<std::uintptr_t>(found.dlfo_map_end);
    code.base = entry.l_addr;
    code.dynamic = reinterpret_cast<std::uintptr_t>(entry.l_ld);
    code.entry = found.dlfo_link_map;
    code.program = path[0] == '\0';  // the loader does not name it
    if (code.program) {
        program_path(path);
    }
    return code;
#else
    return read_loaded_code(address, path);
#endif
}

std::uint64_t identity_of(const loaded_code& code) noexcept {
    // The first page: headers, build id, most of the hash table of the symbols.
    std::uint64_t words[512];
    const std::size_t bytes = std::min(sizeof words, code.end - code.start) / sizeof words[0] * sizeof words[0];
    std::uint64_t h = 0xCBF2'9CE4'8422'2325U;
    const auto mix = [&h](std::uint64_t word) { h = (h ^ word) * 0x9E37'79B9'7F4A'7C15U, h ^= h >> 29U; };
    mix(code.start);
    mix(code.end);
    mix(code.base);
    mix(reinterpret_cast<std::uintptr_t>(code.entry));
    if (safe_copy(words, reinterpret_cast<const void*>(code.start), bytes)) {
        std::for_each(words, words + bytes / sizeof words[0], mix);
    }
    return h;
}

bool exported_function(const loaded_code& code, std::uintptr_t address, std::span<char> name) noexcept {
    tables t;
    if (code.dynamic == 0 || !find_tables(code, t)) {
        return false;
    }
    const std::size_t count = count_symbols(t);
    const std::uintptr_t wanted = address - code.base;
    ElfW(Sym) best{};
    ElfW(Sym) some[128];
    for (std::size_t i = 0; i < count;) {
        const std::size_t n = std::min(count - i, std::size(some));
        if (!safe_copy(some, reinterpret_cast<const void*>(t.symbols + i * sizeof some[0]), n * sizeof some[0])) {
            return false;
        }
        for (const ElfW(Sym) & s : std::span(some, n)) {
            const unsigned type = s.st_info & 15U;
            const bool code_or_data =
                type == STT_FUNC || type == STT_GNU_IFUNC || type == STT_NOTYPE || type == STT_OBJECT;
            if (s.st_shndx != SHN_UNDEF && code_or_data && s.st_value <= wanted && wanted - s.st_value < s.st_size &&
                s.st_value >= best.st_value) {
                best = s;
            }
        }
        i += n;
    }
    return best.st_size != 0 && best.st_name < t.name_bytes && read_text(t.names + best.st_name, name) &&
           name[0] != '\0';
}

}  // namespace pmr_debug::os
