#include "metadata/block_table.hpp"
#include "support/general_purpose.hpp"

#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <map>
#include <random>
#include <thread>
#include <vector>

namespace {

using pmr_debug::trace_id;
using pmr_debug::metadata::arena;
using pmr_debug::metadata::block_entry;
using pmr_debug::metadata::block_table;
using outcome = block_table::outcome;
using relation = block_table::relation;

const void* at(std::uintptr_t address) {
    return reinterpret_cast<const void*>(address);
}

struct fixture {
    explicit fixture(unsigned shards = 1, std::size_t freed_kept = 64, std::size_t reserve = std::size_t{1} << 30) {
        EXPECT_TRUE(memory.open(reserve));
        EXPECT_TRUE(table.open(memory, shards, freed_kept));
    }
    ~fixture() { memory.close(); }

    outcome insert(std::uintptr_t address, std::size_t size = 8, std::size_t alignment = 8) {
        const outcome o =
            table.insert<true>(at(address), size, alignment, trace_id{11}, 3, [this]() noexcept { return ++serial; });
        table.find(at(address), last);
        return o;
    }
    outcome erase(std::uintptr_t address) { return table.erase(at(address), trace_id{22}, 4, last); }

    bool erase_exact(std::uintptr_t address, std::size_t size, std::size_t alignment = 8) {
        return table.erase_exact<true>(at(address), size, alignment, trace_id{22}, 4);
    }

    arena memory;
    block_table table;
    block_entry last;
    std::uint64_t serial = 0;
};

TEST(block_table, keeps_every_fact_of_a_block) {
    fixture f;
    ASSERT_EQ(f.insert(0x7fff'0000'1000, SIZE_MAX - 5, std::size_t{1} << 63), outcome::done);
    block_entry e;
    ASSERT_TRUE(f.table.find(at(0x7fff'0000'1000), e));
    EXPECT_EQ(e.address, at(0x7fff'0000'1000));
    EXPECT_EQ(e.size, SIZE_MAX - 5);
    EXPECT_EQ(e.alignment, std::size_t{1} << 63);
    EXPECT_EQ(e.serial, 1U);
    EXPECT_EQ(e.allocated, trace_id{11});
    EXPECT_EQ(e.alloc_thread, 3U);
    EXPECT_TRUE(e.live);
    EXPECT_EQ(e.freed, trace_id::none);
    EXPECT_FALSE(f.table.find(at(0x7fff'0000'1008), e));
}

TEST(block_table, a_freed_block_is_remembered_with_both_traces) {
    fixture f;
    ASSERT_EQ(f.insert(0x1000, 100, 16), outcome::done);
    ASSERT_EQ(f.erase(0x1000), outcome::done);
    EXPECT_TRUE(f.last.live);  // as it was before
    EXPECT_EQ(f.last.size, 100U);
    ASSERT_EQ(f.erase(0x1000), outcome::freed);
    EXPECT_FALSE(f.last.live);
    EXPECT_EQ(f.last.size, 100U);
    EXPECT_EQ(f.last.alignment, 16U);
    EXPECT_EQ(f.last.allocated, trace_id{11});
    EXPECT_EQ(f.last.freed, trace_id{22});
    EXPECT_EQ(f.last.alloc_thread, 3U);
    EXPECT_EQ(f.last.free_thread, 4U);
    EXPECT_EQ(f.erase(0x2000), outcome::unknown);
}

TEST(block_table, erase_exact_changes_nothing_unless_everything_fits) {
    fixture f;
    EXPECT_FALSE(f.erase_exact(0x1000, 100));  // no block at all yet
    ASSERT_EQ(f.insert(0x1000, 100, 16), outcome::done);
    EXPECT_FALSE(f.erase_exact(0x1000, 99, 16));
    EXPECT_FALSE(f.erase_exact(0x1000, 100, 8));
    EXPECT_FALSE(f.erase_exact(0x1000, 100, 48)) << "no power of two";
    EXPECT_FALSE(f.erase_exact(0x1000, 100, 0));
    EXPECT_FALSE(f.erase_exact(0x1010, 100, 16));
    ASSERT_TRUE(f.erase_exact(0x1000, 100, 16));
    EXPECT_FALSE(f.erase_exact(0x1000, 100, 16));
    ASSERT_EQ(f.erase(0x1000), outcome::freed);
    EXPECT_EQ(f.last.size, 100U);
    EXPECT_EQ(f.last.freed, trace_id{22});
    EXPECT_EQ(f.last.free_thread, 4U);
}

TEST(block_table, an_address_allocated_again_has_no_past) {
    fixture f(1, 4);
    ASSERT_EQ(f.insert(0x1000, 100), outcome::done);
    ASSERT_EQ(f.erase(0x1000), outcome::done);
    ASSERT_EQ(f.insert(0x1000, 50), outcome::done);
    // The ring comes round to the stale entry: the live block must survive that.
    for (std::uintptr_t i = 0; i < 20; ++i) {
        ASSERT_EQ(f.insert(0x10'0000 + i * 64), outcome::done);
        ASSERT_EQ(f.erase(0x10'0000 + i * 64), outcome::done);
    }
    block_entry e;
    ASSERT_TRUE(f.table.find(at(0x1000), e));
    EXPECT_TRUE(e.live);
    EXPECT_EQ(e.size, 50U);
    EXPECT_EQ(e.serial, 2U);
}

TEST(block_table, exactly_the_last_freed_blocks_are_remembered) {
    fixture f(1, 8);
    for (std::uintptr_t i = 1; i <= 20; ++i) {
        ASSERT_EQ(f.insert(i * 64), outcome::done);
    }
    for (std::uintptr_t i = 1; i <= 20; ++i) {
        ASSERT_EQ(f.erase(i * 64), outcome::done);
    }
    for (std::uintptr_t i = 1; i <= 20; ++i) {
        EXPECT_EQ(f.erase(i * 64), i <= 12 ? outcome::unknown : outcome::freed) << i;
    }
}

TEST(block_table, without_memory_freed_blocks_are_forgotten_for_new_ones) {
    fixture f(1, 64);
    ASSERT_EQ(f.insert(64), outcome::done);
    ASSERT_EQ(f.insert(128), outcome::done);
    ASSERT_EQ(f.erase(128), outcome::done);
    std::size_t piece = std::size_t{1} << 20;
    while (piece >= 64) {
        piece = f.memory.allocate(piece) != nullptr ? piece : piece / 2;
    }
    for (std::uintptr_t i = 3; i <= 500; ++i) {
        ASSERT_EQ(f.insert(i * 64), outcome::done) << i;
        ASSERT_EQ(f.erase(i * 64), outcome::done) << i;
    }
    // One slot in 16 stays empty, and one block lives.
    for (std::uintptr_t i = 400; i <= 500; ++i) {
        EXPECT_EQ(f.erase(i * 64), i <= 486 ? outcome::unknown : outcome::freed) << i;
    }
    EXPECT_EQ(f.erase(64), outcome::done);
    // Of living blocks none is.
    std::uintptr_t live = 1'000;
    while (f.insert(live * 64) == outcome::done) {
        ++live;
    }
    EXPECT_EQ(live, 1'015U);
    EXPECT_EQ(f.insert(live * 64), outcome::no_memory);
    for (std::uintptr_t i = 1'000; i < live; ++i) {
        EXPECT_EQ(f.erase(i * 64), outcome::done);
    }
}

TEST(block_table, remembers_nothing_if_told_so) {
    fixture f(1, 0);
    ASSERT_EQ(f.insert(0x1000), outcome::done);
    ASSERT_EQ(f.erase(0x1000), outcome::done);
    EXPECT_EQ(f.erase(0x1000), outcome::unknown);
}

TEST(block_table, a_live_address_cannot_be_inserted_again) {
    fixture f;
    ASSERT_EQ(f.insert(0x1000, 7), outcome::done);
    EXPECT_EQ(f.insert(0x1000, 9), outcome::occupied);
    EXPECT_EQ(f.last.size, 7U);
    EXPECT_EQ(f.last.serial, 1U);
    EXPECT_EQ(f.serial, 1U) << "a refused block must not take a number";
}

TEST(block_table, resize_checks_the_old_size) {
    fixture f;
    ASSERT_EQ(f.insert(0x1000, 7), outcome::done);
    block_entry e;
    EXPECT_EQ(f.table.resize(at(0x1000), 8, 9, e), outcome::mismatch);
    EXPECT_EQ(f.table.resize(at(0x1000), 7, 9, e), outcome::done);
    EXPECT_EQ(e.size, 7U);
    EXPECT_EQ(f.table.resize(at(0x1000), 9, 10, e), outcome::done);
    EXPECT_EQ(f.table.resize(at(0x2000), 9, 10, e), outcome::unknown);
    ASSERT_EQ(f.erase(0x1000), outcome::done);
    EXPECT_EQ(f.table.resize(at(0x1000), 10, 11, e), outcome::freed);
}

TEST(block_table, nearest_prefers_the_block_that_holds_the_address) {
    fixture f(64);
    ASSERT_EQ(f.insert(0x10000, 100), outcome::done);
    ASSERT_EQ(f.insert(0x10080, 16), outcome::done);
    ASSERT_EQ(f.insert(0x20000, 4096), outcome::done);
    ASSERT_EQ(f.erase(0x20000), outcome::done);
    block_entry e;
    EXPECT_EQ(f.table.nearest(at(0x10000), 1000, e), relation::start);
    EXPECT_EQ(f.table.nearest(at(0x10063), 1000, e), relation::inside);
    EXPECT_EQ(e.address, at(0x10000));
    EXPECT_EQ(f.table.nearest(at(0x10064), 1000, e), relation::near);  // one past the end
    EXPECT_EQ(e.address, at(0x10000));
    EXPECT_EQ(f.table.nearest(at(0x1007f), 1000, e), relation::near);
    EXPECT_EQ(e.address, at(0x10080));
    EXPECT_EQ(f.table.nearest(at(0x20800), 1000, e), relation::inside);
    EXPECT_FALSE(e.live);
    EXPECT_EQ(f.table.nearest(at(0x90000), 1000, e), relation::none);
}

TEST(block_table, nearest_prefers_the_living_among_blocks_that_hold_the_address) {
    fixture f(64);
    // Whatever the order of the records: many freed ones around each live one.
    for (std::uintptr_t base = 0x10000; base < 0x40000; base += 0x1000) {
        ASSERT_EQ(f.insert(base, 0x400), outcome::done);
        ASSERT_EQ(f.erase(base), outcome::done);
        ASSERT_EQ(f.insert(base + 0x100, 0x100), outcome::done);
        block_entry e;
        EXPECT_EQ(f.table.nearest(at(base + 0x180), 1000, e), relation::inside);
        EXPECT_EQ(e.address, at(base + 0x100));
        EXPECT_TRUE(e.live);
    }
}

TEST(block_table, a_block_that_ends_at_the_top_of_the_address_space_does_not_wrap) {
    fixture f;
    ASSERT_EQ(f.insert(0x1000, SIZE_MAX), outcome::done);
    block_entry e;
    EXPECT_EQ(f.table.nearest(at(0x900), 0, e), relation::none);
    EXPECT_EQ(f.table.nearest(at(0xffff'0000), 0, e), relation::inside);
}

// Random operations against std::map, small and large tables, with addresses that are used again.
void compare_with_model(unsigned shards, std::size_t freed_kept, std::uintptr_t addresses, int operations) {
    fixture f(shards, freed_kept);
    std::map<std::uintptr_t, std::pair<std::size_t, std::uint64_t>> model;
    std::mt19937_64 random(shards + freed_kept);
    for (int i = 0; i < operations; ++i) {
        const std::uintptr_t address = 0x5555'0000'0000 + (random() % addresses) * 16;
        const auto known = model.find(address);
        if (random() % 2 == 0) {
            const std::size_t size = random() % 1000;
            const outcome o = f.insert(address, size);
            ASSERT_EQ(o, known == model.end() ? outcome::done : outcome::occupied);
            if (o == outcome::done) {
                model[address] = {size, f.serial};
            }
        } else if (known != model.end()) {
            if (random() % 2 == 0) {
                ASSERT_EQ(f.erase(address), outcome::done);
                ASSERT_EQ(f.last.size, known->second.first);
                ASSERT_EQ(f.last.serial, known->second.second);
            } else {
                ASSERT_TRUE(f.erase_exact(address, known->second.first));
            }
            model.erase(known);
        } else {
            ASSERT_NE(f.erase(address), outcome::done);
        }
    }
    std::size_t live = 0;
    f.table.for_each_live([&](const block_entry& e) noexcept {
        ++live;
        const auto known = model.find(reinterpret_cast<std::uintptr_t>(e.address));
        EXPECT_TRUE(known != model.end() && known->second.first == e.size && known->second.second == e.serial);
    });
    EXPECT_EQ(live, model.size());
}

TEST(block_table, agrees_with_a_map_under_random_use) {
    compare_with_model(1, 16, 40, 20'000);
    compare_with_model(1, 0, 3000, 100'000);
    compare_with_model(64, 256, 3000, 100'000);
    compare_with_model(64, 4096, 20'000, 200'000);
}

TEST(block_table, erase_live_marks_all_that_live_and_keeps_the_past_of_others) {
    for (const std::size_t freed_kept : {0U, 1U, 64U, 100'000U}) {
        fixture f(4, freed_kept);
        std::mt19937 random(7);
        std::vector<std::uintptr_t> addresses;
        for (std::uintptr_t i = 0; i < 3000; ++i) {
            addresses.push_back(0x1000 + (i * 64 + random() % 4 * 16));
            ASSERT_EQ(f.insert(addresses.back()), outcome::done);
        }
        std::size_t live = addresses.size();
        for (std::size_t i = 0; i < addresses.size(); i += 3, --live) {
            ASSERT_EQ(f.erase(addresses[i]), outcome::done);
        }
        EXPECT_EQ(f.table.erase_live(trace_id{33}), live);
        EXPECT_EQ(f.table.erase_live(trace_id{33}), 0U);
        std::size_t kept = 0;
        for (std::size_t i = 0; i < addresses.size(); ++i) {
            block_entry e;
            if (f.table.find(at(addresses[i]), e)) {
                ++kept;
                EXPECT_FALSE(e.live);
                EXPECT_EQ(e.freed, i % 3 == 0 ? trace_id{22} : trace_id{33});
                EXPECT_EQ(e.free_thread, i % 3 == 0 ? 4U : 0U);
                EXPECT_EQ(e.allocated, trace_id{11});
            }
            EXPECT_EQ(f.insert(addresses[i]), outcome::done) << "the address is in use again";
        }
        if (freed_kept >= addresses.size()) {
            EXPECT_EQ(kept, addresses.size());
        } else {
            EXPECT_LE(kept, (freed_kept + 3) / 4 * 4);
            EXPECT_GE(kept, freed_kept == 0 ? 0U : 1U);
        }
    }
}

TEST(block_table, refuses_a_block_when_private_memory_is_used_up_and_loses_none) {
    fixture f(1, 4, std::size_t{1} << 20);
    std::uintptr_t n = 0;
    while (n < 100'000 && f.insert(0x1'0000 + n * 16) == outcome::done) {
        ++n;
    }
    ASSERT_LT(n, 100'000U);
    EXPECT_GT(n, 10'000U);  // 1 MiB of 32-byte slots, half of it spent on growing
    EXPECT_EQ(f.serial, n);
    for (std::uintptr_t i = 0; i < n; ++i) {
        ASSERT_EQ(f.erase(0x1'0000 + i * 16), outcome::done);
    }
}

TEST(block_table, threads_do_not_disturb_each_other) {
    fixture f(64, 1024);
    constexpr std::uintptr_t threads = 4;
    constexpr std::uintptr_t blocks = 20'000;
    std::vector<std::thread> running;
    std::vector<std::size_t> failures(threads);
    for (std::uintptr_t t = 0; t < threads; ++t) {
        running.emplace_back([&f, &failures, t] {
            block_entry e;
            for (std::uintptr_t i = 0; i < blocks; ++i) {
                const void* const p = at(0x1'0000 + (i * threads + t) * 16);
                const bool in =
                    f.table.insert<true>(p, i, 8, trace_id{1}, 1, [i]() noexcept { return i + 1; }) == outcome::done;
                const bool out = i % 2 != 0 || (f.table.erase(p, trace_id{2}, 1, e) == outcome::done && e.size == i &&
                                                e.serial == i + 1);
                failures[t] += in && out ? 0 : 1;
            }
        });
    }
    for (std::thread& t : running) {
        t.join();
    }
    EXPECT_EQ(std::count(failures.begin(), failures.end(), 0U), static_cast<std::ptrdiff_t>(threads));
    std::size_t live = 0;
    f.table.for_each_live([&](const block_entry&) noexcept { ++live; });
    EXPECT_EQ(live, threads * blocks / 2);
}

/// Of this process; 0 under ThreadSanitizer, whose notes on memory take several times as much.
std::size_t resident_bytes() {
#if TEST_UNDER_TSAN
    return 0;
#endif
    std::ifstream statm("/proc/self/statm");
    std::size_t total = 0;
    std::size_t resident = 0;
    statm >> total >> resident;
    return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

TEST(block_table, gives_memory_back_when_most_blocks_are_freed) {
    constexpr std::size_t mib = std::size_t{1} << 20;
    constexpr std::uintptr_t step = 32;
    constexpr std::uintptr_t blocks = 200'000;
    for (const unsigned shards : {1U, block_table::max_shards}) {
        fixture f(shards);
        const std::size_t before = resident_bytes();
        for (std::uintptr_t i = 1; i <= blocks; ++i) {
            ASSERT_EQ(f.insert(i * step), outcome::done);
        }
        const std::size_t peak = f.memory.used();
        EXPECT_GE(peak, 16 * mib);
        EXPECT_LT(resident_bytes(), before + peak + 4 * mib) << shards;  // former tables are gone
        for (std::uintptr_t i = 1; i <= blocks; ++i) {
            if (i % 1'000 != 0) {
                ASSERT_EQ(f.erase(i * step), outcome::done);
            }
        }
        EXPECT_LT(f.memory.used(), mib) << shards;
        EXPECT_LT(resident_bytes(), before + 6 * mib) << shards;
        std::size_t live = 0;
        f.table.for_each_place([&](const block_table::place&) noexcept { ++live; });
        EXPECT_EQ(live, blocks / 1'000);
        for (std::uintptr_t i = 1; i <= blocks / 1'000; ++i) {
            EXPECT_TRUE(f.table.find(at(i * 1'000 * step), f.last) && f.last.live);
        }
        for (std::uintptr_t i = 1; i <= blocks; ++i) {  // and it grows again
            ASSERT_EQ(f.insert(i * step), i % 1'000 != 0 ? outcome::done : outcome::occupied);
        }
        EXPECT_EQ(f.table.erase_live(trace_id{7}), blocks);
        EXPECT_LT(f.memory.used(), mib) << shards;
    }
}

}  // namespace
