#include "report/owned_lock.hpp"

#include "os/fault_signals.hpp"

namespace pmr_debug::detail {

owned_lock::outcome owned_lock::lock(int longest_ms) noexcept {
    if (os::telling_fault() && longest_ms > 1'000) {
        longest_ms = 1'000;  // the holder may have faulted as well, and waits for us
    }
    return lock_.lock_for(longest_ms);
}

void owned_lock::unlock() noexcept {
    lock_.unlock();
}

}  // namespace pmr_debug::detail
