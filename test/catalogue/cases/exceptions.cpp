// Line e: code under exceptions.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>
#include <pmr_debug/testing/allocation_failures.hpp>

#include <memory_resource>
#include <new>
#include <string_view>
#include <vector>

namespace catalogue {

namespace {

using pmr_debug::testing::check_all_allocation_failures;
using pmr_debug::testing::exception_test_loop;
using pmr_debug::testing::failure_test_result;

void note_result(const failure_test_result& result) {
    if (!result.ok()) {
        write_text(
            result, [](std::string_view text, void*) noexcept { note(text); }, nullptr);
    }
}

struct two_blocks {
    void* first;
    void* second;
};

}  // namespace

// ---- a leak on throw

CATALOGUE_NOINLINE static two_blocks take_two(std::pmr::memory_resource& memory, bool careless) {
    two_blocks blocks{memory.allocate(16, 8), nullptr};
    try {
        blocks.second = memory.allocate(16, 8);
    } catch (const std::bad_alloc&) {
        if (!careless) {
            memory.deallocate(blocks.first, 16, 8);
        }
        throw;
    }
    return blocks;
}

static void forgets_the_first_block_if_the_second_fails(bool planted) {
    std::pmr::unsynchronized_pool_resource pool;  // which frees at its end what was forgotten
    const auto code = [planted](std::pmr::memory_resource& memory) {
        const two_blocks blocks = take_two(memory, planted);
        memory.deallocate(blocks.second, 16, 8);
        memory.deallocate(blocks.first, 16, 8);
    };
    note_result(check_all_allocation_failures(code, {.upstream = &pool}));
}

// ---- a broken guarantee

namespace {

struct counted_list {
    explicit counted_list(std::pmr::memory_resource& memory) : items(&memory) {}

    std::pmr::vector<int> items;
    std::size_t count = 0;
};

}  // namespace

static void counts_before_it_adds(bool planted) {
    note_result(exception_test_loop([](std::pmr::memory_resource& memory) { return counted_list(memory); },
                                    [planted](counted_list& list) {
                                        if (planted) {
                                            ++list.count;
                                            list.items.push_back(7);
                                        } else {
                                            list.items.push_back(7);
                                            ++list.count;
                                        }
                                    },
                                    [](const counted_list& list) { return list.count == list.items.size(); }));
}

// ---- bad_alloc swallowed, and answered with another try for ever

static void goes_on_without_memory(bool planted) {
    note_result(check_all_allocation_failures([planted](std::pmr::memory_resource& memory) {
        try {
            const std::pmr::vector<int> numbers(10, &memory);
        } catch (const std::bad_alloc&) {
            if (!planted) {
                throw;
            }
        }
    }));
}

static void tries_again_for_ever(bool planted) {
    note_result(check_all_allocation_failures([planted](std::pmr::memory_resource& memory) {
        void* p = nullptr;
        while (p == nullptr) {
            try {
                p = memory.allocate(16, 8);
            } catch (const std::bad_alloc&) {
                if (!planted) {
                    throw;
                }
            }
        }
        memory.deallocate(p, 16, 8);
    }));
}

std::vector<bug> exception_bugs() {
    const auto caught = [](const char* name, void (*run)(bool), const char* found_by, const char* verdict) {
        return bug{.line = "e", .name = name, .found_by = found_by, .run = run, .notes = verdict};
    };
    return {
        caught("leak_on_throw", forgets_the_first_block_if_the_second_fails, "check_all_allocation_failures", "leak"),
        caught("broken_guarantee", counts_before_it_adds, "exception_test_loop", "broken_guarantee"),
        caught("swallowed_bad_alloc", goes_on_without_memory, "check_all_allocation_failures", "swallowed"),
        caught("endless_retry", tries_again_for_ever, "check_all_allocation_failures", "endless_retry"),
    };
}

}  // namespace catalogue
