#include "os/fork_locks.hpp"

#include <pthread.h>

#include <atomic>
#include <cstddef>

namespace pmr_debug::os {

namespace {

struct held {
    void* lock;
    bool is_brief;
};

// Of the one thread that forks. Room for hundreds of resources; what is beyond is not held.
constexpr std::size_t most = std::size_t{1} << 15;
constinit held taken[most]{};
constinit std::size_t count = 0;
constinit bool given_up = false;
constinit int patience_ms = 0;
constexpr int longest_wait_ms = 1'000;

constinit spin_lock forking;
constinit thread_local bool in_charge __attribute__((tls_model("initial-exec"))) = false;
constinit std::atomic<void (*)(fork_locks&) noexcept> collector{nullptr};
pthread_once_t registered = PTHREAD_ONCE_INIT;

void before_fork() {
    forking.lock();
    in_charge = true;
    fork_locks& locks = fork_locks::the_only();
    locks.begin();
    if (const auto collect = collector.load(std::memory_order_acquire); collect != nullptr) {
        collect(locks);
    }
}

void after_fork() {
    if (in_charge) {
        in_charge = false;
        fork_locks::the_only().release();
        forking.unlock();
    }
}

}  // namespace

fork_locks& fork_locks::the_only() noexcept {
    static constinit fork_locks locks;
    return locks;
}

void fork_locks::begin() noexcept {
    given_up = false;
    patience_ms = longest_wait_ms;
}

void fork_locks::release() noexcept {
    while (count != 0) {
        const held h = taken[--count];
        if (h.is_brief) {
            static_cast<brief_lock*>(h.lock)->unlock();
        } else {
            static_cast<spin_lock*>(h.lock)->unlock();
        }
    }
}

bool fork_locks::wait() noexcept {
    if (patience_ms == 0) {
        given_up = true;
        release();
        return false;
    }
    patience_ms -= 1;
    sleep_ms(1);
    return true;
}

void fork_locks::note(void* lock, bool is_brief) noexcept {
    taken[count++] = {lock, is_brief};
}

void fork_locks::take(spin_lock& lock) noexcept {
    while (!given_up && count != most) {
        if (lock.try_lock()) {
            note(&lock, false);
            return;
        }
        wait();
    }
}

void fork_locks::take(brief_lock& lock) noexcept {
    while (!given_up && count != most) {
        if (lock.try_lock()) {
            note(&lock, true);
            return;
        }
        wait();
    }
}

void hold_across_fork(void (*collect)(fork_locks& locks) noexcept) noexcept {
    collector.store(collect, std::memory_order_release);
    // Refused, a fork is as dangerous as one without this library's help.
    pthread_once(&registered, [] { pthread_atfork(before_fork, after_fork, after_fork); });
}

}  // namespace pmr_debug::os
