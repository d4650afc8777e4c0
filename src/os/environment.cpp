#include "os/environment.hpp"

#include <cstdlib>
#include <string_view>

namespace pmr_debug::os {

namespace {

constinit environment at_start{};
constinit bool was_read = false;

std::string_view value_of(const char* name) noexcept {
    const char* const value = std::getenv(name);
    return value != nullptr ? std::string_view(value) : std::string_view();
}

void read() noexcept {
    const std::string_view terminal = value_of("TERM");
    at_start = {.plain_terminal = !value_of("NO_COLOR").empty() || terminal.empty() || terminal == "dumb",
                .no_poison = value_of("PMR_DEBUG_POISON") == "0"};
    was_read = true;
}

// Before the constructors of the program's statics, which have the usual priority.
[[gnu::constructor(101)]] void read_at_start() noexcept {
    read();
}

}  // namespace

const environment& start_environment() noexcept {
    if (!was_read) {  // another library's constructor came first, so there is one thread
        read();
    }
    return at_start;
}

void read_environment_again() noexcept {
    read();
}

}  // namespace pmr_debug::os
