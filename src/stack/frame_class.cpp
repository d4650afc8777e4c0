#include "stack/frame_class.hpp"

#include "os/elf_functions.hpp"
#include "os/guarded.hpp"
#include "os/loaded_code.hpp"
#include "os/virtual_memory.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>

namespace pmr_debug::stack {

namespace {

/// Code of a library, from the file's base.
struct code_range {
    std::uint32_t start;
    std::uint32_t end;
};

enum class knowledge : std::uint8_t { none, being_read, ranges, all_library, nothing };

/// A file whose functions were looked at. `state` is written last.
struct known_file {
    std::atomic<knowledge> state{knowledge::none};
    os::unwind_table table;
    std::uintptr_t base = 0;
    code_range* ranges = nullptr;
    std::size_t count = 0;
    std::size_t mapped = 0;  ///< bytes
};
struct known_files {
    known_file all[256];
};
constinit os::guarded<known_files> files;
const os::guard_pages files_guards(files);

struct collected {
    code_range* ranges;
    std::size_t room;
    std::size_t count;
};

void collect(const os::elf_function& f, void* context) noexcept {
    auto& c = *static_cast<collected*>(context);
    if (f.start + f.bytes > UINT32_MAX || !is_library_symbol(f.name)) {
        return;
    }
    if (c.count < c.room) {
        c.ranges[c.count] = {static_cast<std::uint32_t>(f.start), static_cast<std::uint32_t>(f.start + f.bytes)};
    }
    c.count += 1;
}

/// Effects: sorts them and makes one of those that meet.
std::size_t tidy(code_range* ranges, std::size_t count) noexcept {
    if (count == 0) {
        return 0;
    }
    // In place: std::sort does not allocate.
    std::sort(ranges, ranges + count,
              [](const code_range& a, const code_range& b) noexcept { return a.start < b.start; });
    std::size_t kept = 0;
    for (std::size_t i = 1; i < count; ++i) {
        constexpr std::uint32_t padding = 16;  // between two functions
        if (ranges[i].start <= ranges[kept].end + padding) {
            ranges[kept].end = std::max(ranges[kept].end, ranges[i].end);
        } else {
            ranges[++kept] = ranges[i];
        }
    }
    return kept + 1;
}

bool is_runtime(std::string_view path) noexcept {
    const std::string_view name = path.substr(path.rfind('/') + 1);  // npos + 1 is 0
    for (const std::string_view library :
         {"libc.so", "libstdc++.so", "libc++.so", "libc++abi.so", "libgcc_s.so", "libm.so", "libpthread.so", "libdl.so",
          "librt.so", "ld-linux", "linux-vdso", "libunwind.so", "libpmr_debug.so"}) {
        if (name.starts_with(library)) {
            return true;
        }
    }
    return false;
}

knowledge read_file(known_file& f, std::uintptr_t address) noexcept {
    char path[1024];
    const os::loaded_code code = os::find_loaded_code(address, path);
    if (code.start == 0) {
        return knowledge::nothing;
    }
    if (is_runtime(path)) {
        return knowledge::all_library;
    }
    f.base = code.base;
    collected c{};
    if (!os::for_each_function(path, collect, &c)) {
        return knowledge::nothing;
    }
    if (c.count == 0) {
        return knowledge::ranges;
    }
    const std::size_t bytes = os::round_up(c.count * sizeof(code_range), os::page_size());
    c.ranges = static_cast<code_range*>(os::map(bytes, os::page_size()));
    if (c.ranges == nullptr) {
        return knowledge::nothing;
    }
    c.room = c.count;
    c.count = 0;
    const bool again = os::for_each_function(path, collect, &c);
    f.ranges = c.ranges;
    f.mapped = bytes;
    f.count = tidy(c.ranges, again ? std::min(c.count, c.room) : 0);
    return again ? knowledge::ranges : knowledge::nothing;
}

frame_class class_in(const known_file& f, std::uintptr_t address) noexcept {
    const auto at = static_cast<std::uint32_t>(address - f.base);
    const code_range* const end = f.ranges + f.count;
    const code_range* const above =
        std::upper_bound(static_cast<const code_range*>(f.ranges), end, at,
                         [](std::uint32_t value, const code_range& r) noexcept { return value < r.start; });
    return above != f.ranges && at < above[-1].end ? frame_class::library : frame_class::program;
}

}  // namespace

frame_class class_of(const os::unwind_table& where, std::uintptr_t address) noexcept {
    for (known_file& f : files->all) {
        knowledge now = f.state.load(std::memory_order_acquire);
        if (now == knowledge::none &&
            f.state.compare_exchange_strong(now, knowledge::being_read, std::memory_order_acq_rel)) {
            f.table = where;
            now = read_file(f, address);
            f.state.store(now, std::memory_order_release);
        }
        if (now == knowledge::being_read) {
            return frame_class::not_yet;  // perhaps of this file
        }
        if (f.table == where) {
            return now == knowledge::ranges        ? class_in(f, address)
                   : now == knowledge::all_library ? frame_class::library
                                                   : frame_class::unknown;
        }
    }
    return frame_class::unknown;
}

bool is_library_symbol(std::string_view mangled) noexcept {
    if (!mangled.starts_with("_Z")) {
        return false;
    }
    mangled.remove_prefix(2);
    // Within a function, as a lambda is; a thunk, with the offsets that it adds.
    while (mangled.starts_with('Z')) {
        mangled.remove_prefix(1);
    }
    if (mangled.starts_with('T') && mangled.size() > 1 && (mangled[1] == 'h' || mangled[1] == 'v')) {
        const std::size_t end = mangled[1] == 'h' ? mangled.find('_') : mangled.find('_', mangled.find('_') + 1);
        mangled.remove_prefix(end == std::string_view::npos ? 0 : end + 1);
    }
    if (mangled.starts_with("nw") || mangled.starts_with("na") || mangled.starts_with("dl") ||
        mangled.starts_with("da")) {
        return true;  // operator new and delete
    }
    if (mangled.starts_with('N')) {
        mangled.remove_prefix(1);
        while (!mangled.empty() && (mangled[0] == 'K' || mangled[0] == 'V' || mangled[0] == 'R' || mangled[0] == 'O')) {
            mangled.remove_prefix(1);
        }
    }
    // "St" is std; the other letters after an S are its short names, as "Sa" for std::allocator.
    if (mangled.size() > 1 && mangled[0] == 'S' &&
        std::string_view("tabsiod").find(mangled[1]) != std::string_view::npos) {
        return true;
    }
    return mangled.starts_with("9__gnu_cxx") || mangled.starts_with("10__cxxabiv1") ||
           mangled.starts_with("9pmr_debug");
}

void give_back_classes() noexcept {
    for (known_file& f : files->all) {
        if (f.mapped != 0) {
            os::unmap(f.ranges, f.mapped);
        }
    }
}

}  // namespace pmr_debug::stack
