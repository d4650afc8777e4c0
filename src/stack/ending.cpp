#include "stack/ending.hpp"

#include "metadata/address_map.hpp"
#include "metadata/arena.hpp"
#include "os/spare_stack.hpp"
#include "os/start_code.hpp"
#include "stack/depot.hpp"
#include "stack/frame_class.hpp"
#include "stack/recent.hpp"

#include <dlfcn.h>
#include <link.h>
#include <sys/auxv.h>

#include <cstdint>
#include <cstdlib>

namespace pmr_debug::stack {

namespace {

// Of a trace that is to reach the beginning of the program.
constexpr unsigned max_depth = 64;

struct code {
    std::uintptr_t from = 0;
    std::uintptr_t to = 0;

    // A call that does not return may be the last instruction, so its return address is one past the end.
    [[nodiscard]] bool calls(std::uintptr_t return_address) const noexcept {
        return from < return_address && return_address <= to;
    }
};
constinit code of_exit{};
constinit code of_thread_locals{};

code function_at(void* p) noexcept {
    // Both are small; where their size is not known, this much is theirs, or belongs to others that call nobody's code.
    constexpr std::uintptr_t usual_size = 0x40;
    const auto from = reinterpret_cast<std::uintptr_t>(p);
    Dl_info info{};
    const ElfW(Sym)* symbol = nullptr;
    if (p == nullptr) {
        return {};
    }
    if (::dladdr1(p, &info, reinterpret_cast<void**>(const_cast<ElfW(Sym)**>(&symbol)), RTLD_DL_SYMENT) != 0 &&
        symbol != nullptr && info.dli_saddr == p && symbol->st_size != 0) {
        return {from, from + symbol->st_size};
    }
    return {from, from + usual_size};
}

// While the library is loaded: later the loader's lock may be held by whoever is reported.
[[gnu::constructor(101)]] void note_functions() noexcept {
    of_exit = function_at(reinterpret_cast<void*>(&std::exit));
    of_thread_locals = function_at(::dlsym(RTLD_DEFAULT, "__call_tls_dtors"));
}

// A plug-in that has the library inside may be loaded and unloaded over and over. At the end of the program all stays,
// as threads that still run may use it. After all other destructors of the library.
[[gnu::destructor(101)]] void give_memory_back() noexcept {
    // A program without a loader is static, and holds all there is.
    if (::getauxval(AT_BASE) == 0 || os::is_in_program(reinterpret_cast<std::uintptr_t>(&of_exit))) {
        return;
    }
    const trace_id here = capture_trace(max_depth);
    if (here == trace_id::none || phase_of(here) == program_phase::exit) {
        return;
    }
    detail::give_back_recent();
    give_back_classes();
    give_back_depot();
    metadata::address_map::give_back();
    metadata::give_back_process_arena();
    os::give_back_spare_stacks();
}

}  // namespace

bool is_end_code(std::uintptr_t address) noexcept {
    return of_exit.calls(address) || of_thread_locals.calls(address);
}

program_phase phase_of(trace_id id) noexcept {
    bool thread_ends = false;
    for (const std::uintptr_t address : view(id).frames) {
        if (of_exit.calls(address)) {
            return program_phase::exit;  // destroys the thread_local objects of its thread, too
        }
        thread_ends = thread_ends || of_thread_locals.calls(address);
    }
    return thread_ends ? program_phase::thread_end : program_phase::running;
}

}  // namespace pmr_debug::stack
