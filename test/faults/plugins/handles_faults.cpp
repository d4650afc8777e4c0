// A plug-in with a copy of the library inside, and a fault handler of that; or with one of its own. It is unloaded.
#include <pmr_debug/pmr_debug.hpp>

#include <signal.h>

#include <optional>

namespace {

std::optional<pmr_debug::fault_handler> faults;

void does_nothing(int /*signal*/) {}

}  // namespace

extern "C" [[gnu::visibility("default")]] void start() {
    faults.emplace();
}

extern "C" [[gnu::visibility("default")]] void stop() {
    faults.reset();
}

extern "C" [[gnu::visibility("default")]] void start_own() {
    ::signal(SIGSEGV, does_nothing);
}
