// The two locks of the lowest floor.

#include "os/brief_lock.hpp"
#include "os/thread.hpp"

#include <gtest/gtest.h>

#include <time.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace {

using namespace pmr_debug::os;
using namespace std::chrono_literals;

template <class Lock>
struct locks : ::testing::Test {};

using both = ::testing::Types<spin_lock, brief_lock>;
TYPED_TEST_SUITE(locks, both);

std::chrono::nanoseconds own_processor_time() {
    timespec t{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
}

TYPED_TEST(locks, zeroed_memory_is_an_unlocked_one) {
    alignas(TypeParam) unsigned char memory[sizeof(TypeParam)]{};
    TypeParam& lock = *std::launder(reinterpret_cast<TypeParam*>(memory));
    EXPECT_TRUE(lock.try_lock());
    lock.unlock();
    for (const unsigned char c : memory) {
        EXPECT_EQ(c, 0);
    }
}

TYPED_TEST(locks, one_holds_it_at_a_time) {
    TypeParam lock;
    lock.lock();
    EXPECT_FALSE(lock.try_lock());
    // Taken by the only thread there was: one that starts now finds it held all the same.
    std::thread([&lock] { EXPECT_FALSE(lock.try_lock()); }).join();
    lock.unlock();
    std::thread([&lock] {
        EXPECT_TRUE(lock.try_lock());
        lock.unlock();
    }).join();
    EXPECT_TRUE(lock.try_lock());
    lock.unlock();
}

TYPED_TEST(locks, what_it_guards_is_changed_by_one_thread_at_a_time) {
    constexpr unsigned rounds = 20'000;
    TypeParam lock;
    unsigned count = 0;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 4; ++t) {
        threads.emplace_back([&] {
            for (unsigned i = 0; i < rounds; ++i) {
                const std::scoped_lock hold(lock);
                count += 1;
            }
        });
    }
    for (std::thread& t : threads) {
        t.join();
    }
    EXPECT_EQ(count, 4 * rounds);
}

// A holder may be interrupted for long: whoever waits for it sleeps, and wakes.
TYPED_TEST(locks, who_waits_long_sleeps_and_all_who_wait_get_it) {
    TypeParam lock;
    lock.lock();
    std::atomic<bool> released{false};
    std::atomic<unsigned> got{0};
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 3; ++t) {
        threads.emplace_back([&] {
            const std::chrono::nanoseconds before = own_processor_time();
            {
                const std::scoped_lock hold(lock);
                EXPECT_TRUE(released);
            }
            EXPECT_LT(own_processor_time() - before, 200ms);
            got += 1;
        });
    }
    std::this_thread::sleep_for(600ms);
    EXPECT_EQ(got, 0U);
    released = true;
    lock.unlock();
    for (std::thread& t : threads) {
        t.join();
    }
    EXPECT_EQ(got, 3U);
    EXPECT_TRUE(lock.try_lock());
    lock.unlock();
}

TYPED_TEST(locks, a_hold_lasts_as_long_as_its_scope) {
    TypeParam lock;
    {
        const std::scoped_lock hold(lock);
        EXPECT_FALSE(lock.try_lock());
    }
    EXPECT_TRUE(lock.try_lock());
    lock.unlock();
}

TYPED_TEST(locks, knows_its_holder) {
    TypeParam lock;
    EXPECT_FALSE(lock.is_mine());
    EXPECT_EQ(lock.lock_for(0), lock_outcome::locked);
    EXPECT_TRUE(lock.is_mine());
    EXPECT_EQ(lock.lock_for(1'000), lock_outcome::mine_already);
    std::thread([&lock] {
        EXPECT_FALSE(lock.is_mine());
        EXPECT_EQ(lock.lock_for(3), lock_outcome::gave_up);
    }).join();
    lock.unlock();
    EXPECT_FALSE(lock.is_mine());
}

// As a signal handler does that interrupted the holder.
TYPED_TEST(locks, is_not_waited_for_by_its_holder) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(
        {
            TypeParam lock;
            lock.lock();
            lock.lock();
        },
        "called from within itself");
}

TYPED_TEST(locks, a_look_waits_for_others_only) {
    TypeParam lock;
    { EXPECT_TRUE(look(lock).is_whole()); }
    lock.lock();
    { EXPECT_FALSE(look(lock).is_whole()); }
    EXPECT_FALSE(lock.try_lock());
    lock.unlock();
    EXPECT_TRUE(lock.try_lock());
    lock.unlock();
}

TEST(brief_hold, takes_the_lock_only_where_the_shape_needs_one) {
    brief_lock lock;
    {
        const brief_hold<true> hold(lock);
        EXPECT_FALSE(lock.try_lock());
        const brief_hold<false> none(lock);  // and does not wait
    }
    EXPECT_TRUE(lock.try_lock());
    { const brief_hold<false> none(lock); }
    EXPECT_FALSE(lock.try_lock()) << "released what it did not take";
    lock.unlock();
}

}  // namespace
