#include "os/brief_lock.hpp"

#include "os/quiet.hpp"

#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

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
            const errno_keeper keep;
            ::syscall(SYS_nanosleep, &a_little, nullptr);  // no point at which a thread can be cancelled
        }
    }
}

}  // namespace pmr_debug::os
