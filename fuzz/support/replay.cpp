// Runs a target over files and folders of inputs, with no fuzzer: <target>_replay [file or folder]...
// Each folder may be missing or empty. Random inputs follow, the same in each run: --random=<count> (default 0).

#include "os/environment.hpp"
#include "support/target.hpp"

#include <pmr_debug/testing/fuzz.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace {

void run(const std::vector<std::uint8_t>& bytes) {
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

bool run_file(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) {
        std::fprintf(stderr, "cannot read %s\n", path.c_str());
        return false;
    }
    const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    std::fprintf(stderr, "%s\n", path.filename().c_str());  // a finding is that of the last name
    run({text.begin(), text.end()});
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    ::setenv("PMR_DEBUG_POISON", "0", 1);     // or AddressSanitizer would stop at the misuse that is planted
    pmr_debug::os::read_environment_again();  // it was read when the program was loaded
    std::size_t inputs = 0;
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument = argv[i];
        constexpr std::string_view random = "--random=";
        if (argument.substr(0, random.size()) == random) {
            std::minstd_rand numbers(1);
            for (unsigned long n = std::stoul(std::string(argument.substr(random.size()))); n != 0; --n, ++inputs) {
                std::vector<std::uint8_t> bytes(numbers() % 600);
                std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::uint8_t>(numbers() >> 8U); });
                run(bytes);
            }
            continue;
        }
        const std::filesystem::path path(argument);
        std::vector<std::filesystem::path> files;
        if (std::filesystem::is_directory(path)) {
            for (const auto& entry : std::filesystem::directory_iterator(path)) {
                if (entry.is_regular_file()) {
                    files.push_back(entry.path());
                }
            }
            std::sort(files.begin(), files.end());
        } else if (std::filesystem::exists(path)) {
            files.push_back(path);
        }
        for (const auto& file : files) {
            if (!run_file(file)) {
                return 1;
            }
            ++inputs;
        }
    }
    std::printf("%zu inputs, %llu operations, no finding\n", inputs,
                static_cast<unsigned long long>(pmr_debug::testing::fuzz_operations.load()));
    return 0;
}
