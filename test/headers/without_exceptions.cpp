// Code that is compiled without exceptions includes all public headers, and uses what is in them.

#include <pmr_debug/pmr_debug.hpp>
#include <pmr_debug/testing/allocation_failures.hpp>
#include <pmr_debug/testing/conformance.hpp>
#include <pmr_debug/testing/conformance_gtest.hpp>
#include <pmr_debug/testing/default_resource_guard.hpp>
#include <pmr_debug/testing/fuzz.hpp>
#include <pmr_debug/testing/gtest.hpp>
#include <pmr_debug/testing/is_equal_audit.hpp>
#include <pmr_debug/testing/propagation_check.hpp>
#include <pmr_debug/testing/resource_monitor.hpp>

#include <cstdint>
#include <cstdio>
#include <memory_resource>
#include <string>
#include <vector>

#ifdef __cpp_exceptions
#error compile this with -fno-exceptions
#endif

namespace {

template <class Resource, class... Arguments>
void use(Arguments&&... arguments) {
    Resource resource(arguments...);
    std::pmr::vector<std::pmr::string> words(&resource);
    for (int i = 0; i < 100; ++i) {
        words.emplace_back("a string that is too long to be kept in the object itself");
    }
}

}  // namespace

int main() {
    pmr_debug::collecting_handler errors;
    {
        pmr_debug::page_resource pages({.handler = &errors});
        use<pmr_debug::general_purpose_resource>(&pages, pmr_debug::general_purpose_options{.handler = &errors});
        use<pmr_debug::tracking_resource>(&pages, pmr_debug::tracking_options{.handler = &errors});
        use<pmr_debug::canary_resource>(&pages, pmr_debug::canary_options{.handler = &errors});
        use<pmr_debug::end_of_page_resource>(pmr_debug::end_of_page_options{.handler = &errors});
        use<pmr_debug::limit_resource>();
        use<pmr_debug::failing_resource>();
        pmr_debug::testing::default_resource_guard guard(&pages);
        std::pmr::string on_the_default("a string that is too long to be kept in the object itself");
    }
    // Both throw std::bad_alloc on purpose, within the library.
    std::vector<std::uint8_t> program(400);
    for (std::size_t i = 0; i < program.size(); ++i) {
        program[i] = static_cast<std::uint8_t>(i * 37);
    }
    pmr_debug::testing::fuzz_resource(program.data(), program.size(), [](std::pmr::memory_resource& upstream) {
        return pmr_debug::tracking_resource(&upstream);
    });
    std::printf("%zu reports\n", errors.size());
    return errors.size() == 0 ? 0 : 1;
}
