/// \file
/// For tests of what happens when memory is out: failing, on a limit, on tracking. Which request failed is known by its
/// trace, what was left behind by its call path, and use beyond the budget is refused.

#include "chain_example.hpp"

#include <new>
#include <vector>

static void add_two_lists(std::pmr::memory_resource& memory) {
    void* const first = memory.allocate(400, 8);
    std::pmr::vector<int> second(100, &memory);  // throws, and the first one is lost
    memory.deallocate(first, 400, 8);
}

int main() {
    const chains::report_and_go_on reports;
    pmr_debug::basic_tracking_resource<pmr_debug::thorough_policy> account({.name = "account"});
    pmr_debug::limit_resource budget(&account, {.name = "budget", .limit_bytes = 4096});
    pmr_debug::failing_resource memory(&budget, {.name = "memory", .plan = {.fail_only = 2}});
    try {
        add_two_lists(memory);
    } catch (const std::bad_alloc&) {
        std::printf("request %llu failed, for %zu bytes\n\n",
                    static_cast<unsigned long long>(memory.last_failure().request), memory.last_failure().bytes);
    }
    chains::show(memory);
}
