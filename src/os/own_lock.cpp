#include "os/own_lock.hpp"

#include "os/output.hpp"
#include "os/thread.hpp"

#include <atomic>
#include <string_view>

namespace pmr_debug::os {

namespace {

constexpr int standard_error = 2;
constinit std::atomic<void (*)() noexcept> teller{nullptr};

}  // namespace

void end_in_own_lock() noexcept {
    // Once: what it needs may be held as well.
    if (const auto tell = teller.exchange(nullptr, std::memory_order_acq_rel); tell != nullptr) {
        tell();
    } else {
        constexpr std::string_view text =
            "pmr_debug: called from within itself: a signal handler used a resource in the middle of that one's work\n";
        write_all(standard_error, text.data(), text.size());
    }
    abort_process();
}

void tell_own_lock(void (*tell)() noexcept) noexcept {
    teller.store(tell, std::memory_order_release);
}

}  // namespace pmr_debug::os
