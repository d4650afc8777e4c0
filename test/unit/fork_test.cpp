// A process forks while its threads are anywhere in the library: the child can allocate, free and report.

#include "os/fork_locks.hpp"
#include "support/sanitizers.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <thread>
#include <vector>

namespace {

using namespace pmr_debug;

class fork_among_threads : public ::testing::Test {
protected:
    void SetUp() override {
        if (TEST_SANITIZED != 0) {
            GTEST_SKIP() << "a sanitizer's own locks are not held across a fork";
        }
    }
    collecting_handler reports;
};

/// The code with which a child that runs \p f exits; -1: it ended otherwise, or not within \p seconds.
template <class F>
int exit_of(const F& f, unsigned seconds) {
    std::fflush(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
        ::alarm(seconds);
        ::_exit(f());
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Other threads are anywhere in the library when the process forks; in the child they are no more.
template <class Resource>
void go_on_in_children(Resource& r) {
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 3; ++t) {
        threads.emplace_back([&r, &stop, t] {
            std::vector<void*> held(64);
            for (std::size_t i = t; !stop.load(std::memory_order_relaxed); ++i) {
                void*& p = held[i * 7 % held.size()];
                if (p != nullptr) {
                    r.deallocate(p, 3000);
                }
                p = r.allocate(3000);
            }
            for (void* const p : held) {
                if (p != nullptr) {
                    r.deallocate(p, 3000);
                }
            }
        });
    }
    int failed = 0;
    for (int i = 0; i < 25; ++i) {
        std::this_thread::yield();
        failed += exit_of(
                      [&r] {
                          for (int k = 0; k < 300; ++k) {
                              r.deallocate(r.allocate(3000), 3000);
                          }
                          const std::uint64_t errors = r.errors().total();
                          void* const p = r.allocate(100);
                          r.deallocate(p, 100);
                          r.deallocate(p, 100);
                          return r.errors().total() == errors + 1 && r.stats().live_blocks <= 400 ? 0 : 1;
                      },
                      10) != 0
                      ? 1
                      : 0;
        if (failed > 2) {
            break;
        }
    }
    stop = true;
    for (std::thread& t : threads) {
        t.join();
    }
    EXPECT_EQ(failed, 0);
}

TEST_F(fork_among_threads, of_a_heap) {
    page_resource pages({.handler = &reports});
    general_purpose_resource heap(&pages, {.handler = &reports});
    go_on_in_children(heap);
}
TEST_F(fork_among_threads, of_a_chain) {
    page_resource pages({.handler = &reports});
    general_purpose_resource heap(&pages, {.handler = &reports});
    canary_resource canary(&heap, {.handler = &reports});
    tracking_resource tracking(&canary, {.handler = &reports});
    go_on_in_children(tracking);
}
TEST_F(fork_among_threads, of_an_end_of_page_resource) {
    end_of_page_resource fence({.handler = &reports});
    go_on_in_children(fence);
}

/// Called while a process forks, once all locks are taken: what is registered first, before the library's constructors,
/// comes last.
void (*during_fork)(void*) = nullptr;
void* during_fork_context = nullptr;
int registered = -1;

void register_first() {
    registered = ::pthread_atfork(
        [] {
            if (during_fork != nullptr) {
                during_fork(during_fork_context);
            }
        },
        nullptr, nullptr);
}
[[gnu::section(".preinit_array"), gnu::used]] void (*const first)() = register_first;

/// True if \p use, in another thread, waits while the process forks.
template <class F>
bool waits_for_a_fork(const F& use) {
    std::atomic<bool> done{false};
    bool waited = false;
    std::thread other;
    auto watch = [&] {
        other = std::thread([&] {
            use();
            done = true;
        });
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        waited = !done;
    };
    during_fork_context = &watch;
    during_fork = [](void* context) { (*static_cast<decltype(watch)*>(context))(); };
    EXPECT_EQ(exit_of([] { return 0; }, 10), 0);
    during_fork = nullptr;
    other.join();
    return waited;
}

TEST_F(fork_among_threads, resources_that_pass_through) {
    ASSERT_EQ(registered, 0);
    failing_resource failing({.handler = &reports});
    EXPECT_TRUE(waits_for_a_fork([&failing] { static_cast<void>(failing.requests()); }));
    limit_resource limit({.handler = &reports});
    void* const counted = limit.allocate(100);
    EXPECT_TRUE(waits_for_a_fork([&] { limit.deallocate(counted, 100); }));
    immortal_proxy proxy(std::pmr::new_delete_resource(), {.handler = &reports});
    void* const recorded = proxy.resource()->allocate(100);
    EXPECT_TRUE(waits_for_a_fork([&] { proxy.resource()->deallocate(recorded, 100); }));
    EXPECT_FALSE(waits_for_a_fork([] {})) << "then the test says nothing";
    EXPECT_EQ(reports.count(), 0U);
}

// From an upstream, say, or a signal handler: it releases its own lock itself, in both processes.
TEST(fork_locks, a_fork_by_who_holds_a_lock_lets_that_one_be) {
    static os::brief_lock brief;
    static os::spin_lock spin;
    brief.lock();
    spin.lock();
    os::fork_locks& locks = os::fork_locks::the_only();
    locks.begin();
    locks.take(spin);
    locks.take(brief);
    locks.release();
    EXPECT_FALSE(spin.try_lock());
    EXPECT_FALSE(brief.try_lock());
    spin.unlock();
    brief.unlock();
}

TEST(fork_locks, the_thread_in_charge_passes_and_nobody_else) {
    static os::brief_lock brief;
    static os::spin_lock spin;
    os::fork_locks& locks = os::fork_locks::the_only();
    locks.begin();
    locks.take(spin);
    locks.take(brief);
    for (int i = 0; i < 2; ++i) {
        const std::scoped_lock hold(spin);
        const os::brief_hold<true> briefly(brief);
    }
    std::thread([] {
        EXPECT_FALSE(spin.try_lock());
        EXPECT_FALSE(brief.try_lock());
    }).join();
    locks.release();
    EXPECT_TRUE(spin.try_lock());
    EXPECT_TRUE(brief.try_lock());
    spin.unlock();
    brief.unlock();
}

// Another thread does not let go of a lock.
TEST(fork_locks, a_fork_does_not_wait_for_ever) {
    static os::brief_lock brief;
    static os::spin_lock spin;
    // The collector is the library's own; this one is asked by hand.
    os::fork_locks& locks = os::fork_locks::the_only();
    locks.begin();
    static os::spin_lock stuck;
    std::thread([] { stuck.lock(); }).join();
    locks.take(spin);
    locks.take(brief);
    EXPECT_FALSE(spin.try_lock());
    EXPECT_FALSE(brief.try_lock());
    locks.take(stuck);  // after a second all are released
    EXPECT_TRUE(spin.try_lock());
    EXPECT_TRUE(brief.try_lock());
    locks.take(spin);  // nothing any more
    locks.release();
    EXPECT_FALSE(spin.try_lock());
    spin.unlock();
    brief.unlock();
}

}  // namespace
