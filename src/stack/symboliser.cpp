#include <pmr_debug/stack_trace.hpp>

#include "os/build_id.hpp"
#include "os/fault_signals.hpp"
#include "os/guarded.hpp"
#include "os/quiet.hpp"
#include "os/thread.hpp"
#include "stack/depot.hpp"
#include "stack/loaded_files.hpp"
#include "stack/modules.hpp"
#include "stack/names.hpp"

#include <link.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <string_view>

#if defined(PMR_DEBUG_HAVE_LIBBACKTRACE) && PMR_DEBUG_HAVE_LIBBACKTRACE
#include <backtrace.h>
#endif

namespace pmr_debug {
namespace stack {

namespace {

/// Where this library's sources were compiled. A compiler may name an inlined lambda or a local function without its
/// namespace, so names alone do not tell all of the library's frames.
constexpr std::string_view own_sources = [] {
    std::string_view path = __FILE__;
    path.remove_suffix(std::string_view("stack/symboliser.cpp").size());
    return path;
}();

/// One at a time, because the symbol tables and the buffer below are shared.
///
/// A thread that resolves and, from its visitor, gets to resolve again must not wait for itself; nor must the child of
/// a fork wait for a thread that exists in its parent only. Both are refused.
class turn {
public:
    turn() noexcept {
        const int process = ::getpid();
        const int holder_process = state_->holder_process.load(std::memory_order_relaxed);
        if (holder_process != 0 && holder_process != process) {
            return;
        }
        // The holder may have faulted as well, and waits for us.
        const int longest_ms = os::telling_fault() ? 1'000 : 60'000;
        if (state_->lock.lock_for(longest_ms) == os::lock_outcome::locked) {
            state_->holder_process.store(process, std::memory_order_relaxed);
            granted_ = true;
        }
    }
    turn(const turn&) = delete;
    turn& operator=(const turn&) = delete;
    ~turn() {
        if (granted_) {
            state_->holder_process.store(0, std::memory_order_relaxed);
            state_->lock.unlock();
        }
    }
    [[nodiscard]] bool granted() const noexcept { return granted_; }

private:
    struct state {
        os::spin_lock lock;
        std::atomic<int> holder_process{0};
    };
    static constinit os::guarded<state> state_;
    static const os::guard_pages guards_;

    bool granted_ = false;
};

constinit os::guarded<turn::state> turn::state_;
const os::guard_pages turn::guards_(turn::state_);

/// Hands frames of one address out. Of each it is known only when the next one comes whether it was inlined.
struct emitter {
    frame_visitor visitor;
    void* context;
    std::uintptr_t address;
    module where;
    bool changed = false;

    void operator()(const char* function, const char* file, int line, bool inlined) const noexcept {
        static constinit char buffer[8192]{};  // whoever is here has the turn
        resolved_frame f;
        f.address = address;
        f.function = function != nullptr ? demangle(function, buffer) : "";
        f.file = file != nullptr ? file : "";
        f.line = line > 0 ? static_cast<unsigned>(line) : 0;
        f.module = where.path;
        f.module_offset = address - where.base;
        f.inlined = inlined;
        f.changed = changed;
        f.in_library = is_library_function(f.function) || std::string_view(f.file).starts_with(own_sources);
        visitor(f, context);
    }
};

const char* exported_name(const module& where, std::uintptr_t pc) noexcept {
    static constinit char name[2048]{};  // whoever is here has the turn
    return os::exported_function(where.code, pc, name) ? name : nullptr;
}

/// True if the file at the path of \p m is not the one that is loaded, as far as build ids tell: it was built anew, or
/// the path is relative and the folder another one by now.
bool is_changed(const module& m) noexcept {
    if (m.identity == 0 || m.path[0] == '\0') {
        return false;
    }
    const std::uint64_t loaded = os::loaded_build_id(m.code.start, m.code.end);
    const std::uint64_t on_disk = loaded != 0 ? os::file_build_id(m.path) : 0;
    return on_disk != 0 && on_disk != loaded;
}

#if defined(PMR_DEBUG_HAVE_LIBBACKTRACE) && PMR_DEBUG_HAVE_LIBBACKTRACE

/// libbacktrace's tables, one set a module. Left to itself it reads all modules' debug information at first use, which
/// takes some 80 ms where that of the C library is installed; most traces need that of the program only.
struct module_tables {
    module where;
    bool changed = false;  ///< the file is another one by now: there is no state
    backtrace_state* state = nullptr;
};

// libbacktrace never gives a state's memory back, so programs that load and unload plugins do not get new ones without
// end. Beyond, there are the dynamic symbol tables.
constexpr int most_tables = 64;
struct symbol_tables {
    int made = 0;
    bool units_ordered =
        true;        ///< of the state that is being made: are its units' ranges, which come before functions'?
    module shown{};  ///< the module that libbacktrace gets to see while it starts
    module_tables all[most_tables]{};
};
constinit os::guarded<symbol_tables> every_table;
const os::guard_pages every_table_guards(every_table);
constexpr auto& tables = every_table->all;
constexpr auto& tables_made = every_table->made;
constexpr auto& units_ordered = every_table->units_ordered;
constexpr auto& shown = every_table->shown;

void ignore_error(void*, const char*, int) {}

/// Returns: the tables of \p where; null if there are none. What they were read from is known to be its file: it is
/// looked at once, before.
const module_tables* tables_of(const module& where) noexcept {
    for (int i = 0; i < tables_made; ++i) {
        // Where a module was unloaded, another may be in its place, or a newer one of the same name.
        if (tables[i].where.identity == where.identity) {
            shown = where;
            return &tables[i];
        }
    }
    if (tables_made == most_tables || (where.path[0] == '\0' && !where.executable)) {
        return nullptr;
    }
    module_tables& fresh = tables[tables_made];
    fresh = {where, is_changed(where)};
    if (!fresh.changed) {
        constexpr int one_thread_at_a_time = 0;
        shown = where;
        fresh.state = backtrace_create_state(where.executable ? nullptr : where.path, one_thread_at_a_time,
                                             ignore_error, nullptr);
        units_ordered = false;
    }
    ++tables_made;
    return &fresh;
}

// libbacktrace joins a unit's neighbouring address ranges to one, and for an address looks only at those ranges that
// begin where the nearest one before it begins. In builds without optimisation that misses most inline and template
// functions: the linker lets each unit that has such a function claim the one copy that is kept, so that within the
// joined range of the unit it came from ranges of others begin, and nothing is found behind them. So ranges within
// others are changed to lead to the unit of these: it describes that copy as well.

using comparison = int (*)(const void*, const void*);

/// How libbacktrace keeps the ranges of units, ordered by `low`. Ranges of functions are kept alike.
struct address_range {
    std::uintptr_t low;
    std::uintptr_t high;
    void* of;
};

/// True if \p compare is for address ranges: unlike that for lines it looks at their ends, unlike that for symbols at
/// their beginnings.
bool orders_ranges(comparison compare) noexcept {
    const address_range range{.low = 1, .high = 3, .of = nullptr};
    const address_range shorter{.low = 1, .high = 2, .of = nullptr};
    const address_range later{.low = 2, .high = 3, .of = nullptr};
    return compare(&range, &shorter) != 0 && compare(&range, &later) != 0;
}

void absorb_inner(address_range* ranges, std::size_t count) noexcept {
    const address_range* outer = nullptr;
    for (address_range* r = ranges; r != ranges + count; ++r) {
        if (outer != nullptr && r->low < outer->high && r->high < outer->high) {
            r->high = outer->high;
            r->of = outer->of;
        } else if (r->low != shown.base) {  // what the linker dropped stands at address 0, where nothing is
            outer = r;
        }
    }
}

struct source_frames {
    const emitter& emit;
    bool have = false;  // one is held back until it is known whether another follows
    const char* function = nullptr;
    const char* file = nullptr;
    int line = 0;
};

int take_source_frame(void* context, std::uintptr_t, const char* file, int line, const char* function) {
    source_frames& s = *static_cast<source_frames*>(context);
    if (file == nullptr && function == nullptr) {
        return 0;
    }
    if (s.have) {
        s.emit(s.function, s.file, s.line, true);
    }
    s.have = true;
    s.function = function;
    s.file = source_path(file);
    s.line = line;
    return 0;
}

void take_symbol(void* context, std::uintptr_t, const char* name, std::uintptr_t, std::uintptr_t) {
    *static_cast<const char**>(context) = name;
}

const char* symbol_name(const module& where, backtrace_state* state, std::uintptr_t pc) noexcept {
    const char* name = nullptr;
    if (state != nullptr) {
        backtrace_syminfo(state, pc, take_symbol, ignore_error, &name);
    }
    return name != nullptr ? name : exported_name(where, pc);
}

void emit_frames(emitter emit, std::uintptr_t pc) noexcept {
    const module_tables* const known = tables_of(emit.where);
    backtrace_state* const state = known != nullptr ? known->state : nullptr;
    emit.changed = known != nullptr ? known->changed : is_changed(emit.where);
    source_frames s{emit};
    if (state != nullptr) {
        backtrace_pcinfo(state, pc, take_source_frame, ignore_error, &s);
    }
    // The debug information leaves the namespace out of functions that are local to their file; the symbol has it.
    const bool mangled = s.function != nullptr && std::string_view(s.function).starts_with("_Z");
    const char* const symbol = mangled ? nullptr : symbol_name(emit.where, state, pc);
    emit(symbol != nullptr ? symbol : s.function, s.file, s.line, false);
}

#else

void emit_frames(emitter emit, std::uintptr_t pc) noexcept {
    emit.changed = is_changed(emit.where);
    emit(exported_name(emit.where, pc), nullptr, 0, false);
}

#endif

/// Returns: the one of \p files that the code at \p pc belongs to, if it is not there any more.
loaded_file_info unloaded_file(std::uint64_t files, std::uintptr_t pc) noexcept {
    for (; files != 0; files >>= 16U) {
        const auto number = static_cast<std::uint16_t>(files);
        const loaded_file_info f = file_info(number);
        if (f.low <= pc && pc < f.high) {
            return is_still_loaded(number, pc) ? loaded_file_info{} : f;
        }
    }
    return {};
}

}  // namespace

#if defined(PMR_DEBUG_HAVE_LIBBACKTRACE) && PMR_DEBUG_HAVE_LIBBACKTRACE
// The build makes libbacktrace call this in place of dl_iterate_phdr. Without a name, a module counts as the file that
// the state was made for.
extern "C" int pmr_debug_dl_iterate_phdr(int (*callback)(dl_phdr_info*, std::size_t, void*), void* data) {
    return show_module(shown, callback, data);
}

extern "C" void pmr_debug_libbacktrace_qsort(void* base, std::size_t count, std::size_t size,
                                             int (*compare)(const void*, const void*));

// What libbacktrace calls to order its tables.
extern "C" void pmr_debug_backtrace_qsort(void* base, std::size_t count, std::size_t size,
                                          int (*compare)(const void*, const void*)) {
    pmr_debug_libbacktrace_qsort(base, count, size, compare);
    if (!units_ordered && size == sizeof(address_range) && orders_ranges(compare)) {
        units_ordered = true;
        absorb_inner(static_cast<address_range*>(base), count);
    }
}
#endif

}  // namespace stack

void resolve(trace_id id, frame_visitor visitor, void* context) noexcept {
    const trace_view trace = view(id);
    if (trace.frames.empty()) {
        return;
    }
    const std::uint64_t files = stack::files_of(id);
    const os::errno_keeper keep;
    const os::no_cancellation undisturbed;  // files of debug information are opened and read
    const stack::turn mine;
    for (const std::uintptr_t address : trace.frames) {
        // A return address is where the call's next instruction is; the call itself lies before.
        const std::uintptr_t pc = address - 1;
        const stack::loaded_file_info gone = stack::unloaded_file(files, pc);
        const stack::module where = gone.low != 0 ? stack::module{} : stack::find_module(pc);
        if (gone.low == 0 && mine.granted()) {
            stack::emit_frames({visitor, context, address, where}, pc);
            continue;
        }
        resolved_frame f;
        f.address = address;
        f.unloaded = gone.low != 0;
        f.module = f.unloaded ? gone.path : where.path;
        f.module_offset = address - (f.unloaded ? gone.base : where.base);
        visitor(f, context);
    }
}

}  // namespace pmr_debug
