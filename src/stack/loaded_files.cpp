#include "stack/loaded_files.hpp"

#include "os/build_id.hpp"
#include "os/guarded.hpp"
#include "stack/modules.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace pmr_debug::stack {

namespace {

/// What tells a file from another one in its place.
struct loaded_file {
    os::unwind_table table;
    std::uint64_t functions[4];  ///< of the table: their number, the first ones
    std::uintptr_t build_id_at;  ///< 0: it has none
    std::uint64_t build_id;      ///< the first 8 bytes
    std::uintptr_t base;
    const char* path;
    std::atomic<bool> ready{false};
};

struct file_list {
    loaded_file all[most_loaded_files];
    std::atomic<unsigned> used{1};
};
constinit os::guarded<file_list> files;
const os::guard_pages files_guards(files);

std::uint64_t word_at(std::uintptr_t address) noexcept {
    std::uint64_t word;
    std::memcpy(&word, reinterpret_cast<const void*>(address), sizeof word);
    return word;
}

void read_functions(const os::unwind_table& t, std::uint64_t (&out)[4]) noexcept {
    const auto header = reinterpret_cast<std::uintptr_t>(t.header);
    for (std::uint64_t& word : out) {
        const std::uintptr_t at = header + static_cast<std::uintptr_t>(&word - out) * sizeof word;
        word = at + sizeof word <= t.high ? word_at(at) : 0;
    }
}

bool is_same(const loaded_file& f, const os::unwind_table& now) noexcept {
    if (!f.ready.load(std::memory_order_acquire) || f.table != now) {
        return false;
    }
    std::uint64_t functions[4];
    read_functions(now, functions);
    return std::equal(functions, functions + 4, f.functions) &&
           (f.build_id_at == 0 || word_at(f.build_id_at) == f.build_id);
}

}  // namespace

unsigned number_of_file(const os::unwind_table& t, std::uintptr_t address) noexcept {
    const unsigned used = std::min(files->used.load(std::memory_order_acquire), most_loaded_files);
    for (unsigned i = used; i-- > 1;) {
        if (is_same(files->all[i], t)) {
            return i;
        }
    }
    if (used == most_loaded_files) {
        return 0;
    }
    const unsigned mine = files->used.fetch_add(1, std::memory_order_acq_rel);
    if (mine >= most_loaded_files) {
        return 0;
    }
    loaded_file& f = files->all[mine];
    f.table = t;
    read_functions(t, f.functions);
    f.build_id_at = os::find_build_id(t.low, t.high);
    f.build_id = f.build_id_at != 0 ? word_at(f.build_id_at) : 0;
    const module m = find_module(address);
    f.base = m.base;
    f.path = m.path;
    f.ready.store(true, std::memory_order_release);
    return mine;
}

loaded_file_info file_info(std::uint16_t file) noexcept {
    if (file == 0 || file >= most_loaded_files || !files->all[file].ready.load(std::memory_order_acquire)) {
        return {};
    }
    const loaded_file& f = files->all[file];
    return {f.table.low, f.table.high, f.base, f.path};
}

bool is_still_loaded(std::uint16_t file, std::uintptr_t address) noexcept {
    return is_same(files->all[file], os::find_unwind_table(address));
}

}  // namespace pmr_debug::stack
