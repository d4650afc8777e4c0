#include "os/brief_lock.hpp"

#include "os/processor.hpp"
#include "os/quiet.hpp"
#include "os/thread.hpp"

#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace pmr_debug::os {

std::uintptr_t brief_lock::wait() noexcept {
    for (unsigned round = 0;; ++round) {
        const std::uintptr_t holder = holder_.load(std::memory_order_relaxed);
        if (holder == (self() | for_fork)) {
            return holder;  // it stays as it is
        }
        if (is_me(holder)) {
            end_in_own_lock();
        }
        if (holder == 0 && try_lock()) {
            return 0;
        }
        if (round < 100) {
            relax();
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

lock_outcome brief_lock::lock_for(int longest_ms) noexcept {
    for (int waited = 0; !try_lock(); ++waited) {
        if (is_mine()) {
            return lock_outcome::mine_already;
        }
        if (waited >= longest_ms) {
            return lock_outcome::gave_up;
        }
        for (int i = 0; i < 200 && holder_.load(std::memory_order_relaxed) != 0; ++i) {
            relax();
        }
        if (holder_.load(std::memory_order_relaxed) != 0) {
            sleep_ms(1);
        }
    }
    return lock_outcome::locked;
}

}  // namespace pmr_debug::os
