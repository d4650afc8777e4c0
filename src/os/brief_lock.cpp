#include "os/brief_lock.hpp"

#include <sched.h>
#include <time.h>

namespace pmr_debug::os {

void brief_lock::wait() noexcept {
    for (unsigned round = 0;; ++round) {
        if (!held_.load(std::memory_order_relaxed) && !held_.exchange(true, std::memory_order_acquire)) {
            return;
        }
        if (round < 100) {
            __builtin_ia32_pause();
        } else if (round < 1000) {
            ::sched_yield();
        } else {
            // The holder may have a lower real-time priority: yielding would never let it run.
            constexpr timespec a_little{.tv_sec = 0, .tv_nsec = 50'000};
            ::nanosleep(&a_little, nullptr);
        }
    }
}

}  // namespace pmr_debug::os
