#include "report/owned_lock.hpp"

#include "os/fault_signals.hpp"

#include <chrono>
#include <thread>

namespace pmr_debug::detail {

owned_lock::outcome owned_lock::lock(int longest_ms) noexcept {
    const std::uint32_t self = os::this_thread().number;
    // Only this thread ever writes its own number, so no order is needed to recognise it.
    if (holder_.load(std::memory_order_relaxed) == self) {
        return outcome::mine_already;
    }
    if (os::telling_fault() && longest_ms > 1'000) {
        longest_ms = 1'000;  // the holder may have faulted as well, and waits for us
    }
    for (int waited = 0; !lock_.try_lock(); ++waited) {
        if (waited >= longest_ms) {
            return outcome::gave_up;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    holder_.store(self, std::memory_order_relaxed);
    return outcome::locked;
}

void owned_lock::unlock() noexcept {
    holder_.store(0, std::memory_order_relaxed);
    lock_.unlock();
}

}  // namespace pmr_debug::detail
