#include "os/fork_locks.hpp"

#include "os/guarded.hpp"
#include "os/processor.hpp"

#include <pthread.h>

#include <atomic>
#include <cstddef>

namespace pmr_debug::os {

namespace {

struct held {
    void* lock;
    bool is_brief;
    const void* of;
};

// Of the one thread that forks. Room for hundreds of resources; what is beyond is not held.
constexpr std::size_t most = std::size_t{1} << 15;
struct fork_state {
    spin_lock forking;
    std::atomic<void (*)(fork_locks&) noexcept> collector{nullptr};
    std::size_t count = 0;
    const void* owner = nullptr;
    unsigned inner_forks = 0;
    bool given_up = false;
    int patience_ms = 0;
    held taken[most]{};
};
constinit guarded<fork_state> state;
const guard_pages state_guards(state);
constexpr auto& taken = state->taken;
constexpr auto& count = state->count;
constexpr auto& owner = state->owner;
constexpr auto& inner_forks = state->inner_forks;
constexpr auto& given_up = state->given_up;
constexpr auto& patience_ms = state->patience_ms;
constexpr auto& forking = state->forking;
constexpr auto& collector = state->collector;

constexpr int longest_wait_ms = 1'000;
constexpr int looks_a_wait = 5'000;
constinit thread_local bool in_charge __attribute__((tls_model("initial-exec"))) = false;
pthread_once_t registered = PTHREAD_ONCE_INIT;

void before_fork() {
    if (in_charge || forking.is_mine()) {  // a handler of the program's forks, or a signal handler
        ++inner_forks;
        return;
    }
    forking.lock();
    in_charge = true;
    fork_locks& locks = fork_locks::the_only();
    locks.begin();
    if (const auto collect = collector.load(std::memory_order_acquire); collect != nullptr) {
        collect(locks);
    }
}

void after_fork() {
    if (inner_forks != 0) {
        --inner_forks;
    } else if (in_charge) {
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
        if (h.lock == nullptr) {
            continue;  // gone meanwhile
        }
        if (h.is_brief) {
            static_cast<brief_lock*>(h.lock)->end_fork();
        } else {
            static_cast<spin_lock*>(h.lock)->end_fork();
        }
    }
    owner = nullptr;
}

void fork_locks::of(const void* whose) noexcept {
    owner = whose;
}

void fork_locks::forget(const void* whose) noexcept {
    if (!in_charge) {
        return;
    }
    for (std::size_t i = 0; i < count; ++i) {
        if (taken[i].of == whose) {
            taken[i].lock = nullptr;
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

template <class Lock>
void fork_locks::take_any(Lock& lock, bool is_brief) noexcept {
    // What this thread holds itself it releases itself, in both processes: it forks from an upstream, or from a signal
    // handler.
    while (!given_up && count != most && !lock.is_mine()) {
        // A thread that takes it again and again leaves it free for moments only, which one look a millisecond would
        // miss until patience ends. So it is looked at for longer than such a thread holds it.
        for (int look = 0; look < looks_a_wait; ++look) {
            if (lock.try_lock()) {
                lock.keep_for_fork();
                taken[count++] = {&lock, is_brief, owner};
                return;
            }
            relax();
        }
        wait();
    }
}

void fork_locks::take(spin_lock& lock) noexcept {
    take_any(lock, false);
}

void fork_locks::take(brief_lock& lock) noexcept {
    take_any(lock, true);
}

void hold_across_fork(void (*collect)(fork_locks& locks) noexcept) noexcept {
    collector.store(collect, std::memory_order_release);
}

namespace {

// When the library is loaded: handlers that are registered later run before ours in the preparation, so that they find
// no lock held, and after ours in both processes. It is only for those registered earlier, by libraries that were
// loaded before, that the thread in charge may take what it holds. Refused, a fork is as dangerous as one without this
// library's help.
[[gnu::constructor(101)]] void prepare_for_forks() noexcept {
    pthread_once(&registered, [] { pthread_atfork(before_fork, after_fork, after_fork); });
}

}  // namespace

}  // namespace pmr_debug::os
